//! What users of older routers had in print, for the tiers that run it: the documents' own stacks and commands.

/// The services of the Compose file that Docker's HTTP routing mesh has as its example.
pub const SESSION_EXAMPLE: &str = r#"
    redis:
      image: redis:3.0.7
      hostname: redis
      networks:
        - back-end
      deploy:
        mode: replicated
        replicas: 1
    session-example:
      image: ahromis/session-example:0.1
      ports:
        - 8080
      networks:
        - back-end
        - ucp-hrm
      deploy:
        mode: replicated
        replicas: 5
        labels:
          - com.docker.ucp.mesh.http.8080=external_route=http://${DOMAIN},internal_port=8080
"#;
/// Its own network.
pub const BACK_END: &str = "    back-end:\n      driver: overlay\n";

/// [`SESSION_EXAMPLE`] with sticky sessions.
pub fn session_example_sticky() -> String {
    SESSION_EXAMPLE.replace("internal_port=8080", "internal_port=8080,sticky_sessions=SESSION")
}

/// [`SESSION_EXAMPLE`] with TLS of its own, and a redirect to it.
pub fn session_example_https() -> String {
    let labels = r"          - com.docker.ucp.mesh.http.1=external_route=http://${DOMAIN},redirect=https://${DOMAIN}
          - com.docker.ucp.mesh.http.8443=external_route=sni://${DOMAIN},internal_port=8443
";
    let (kept, _) = SESSION_EXAMPLE.split_once("          - com.docker").unwrap_or((SESSION_EXAMPLE, ""));
    kept.replace("        - 8080\n", "        - 8443\n      environment:\n        - SPRING_PROFILES_ACTIVE=https\n") + labels
}

/// The routing mesh's service with two ports, 8000 and 8001.
pub const TWO_SITES: &str = r"docker service create \
      -l com.docker.ucp.mesh.http.8000=external_route=http://site1.example.com,internal_port=8000 \
      -l com.docker.ucp.mesh.http.8001=external_route=http://site2.example.com,internal_port=8001 \
      -p 8000 \
      -p 8001 \
      --network ucp-hrm \
      --replicas 3 \
      --name twosite ahromis/nginx-twosite:latest";

/// The routing mesh's redirect to another domain; port 8080.
pub const REDIRECTED: &str = r"docker service create \
      -l com.docker.ucp.mesh.http.1=external_route=http://oldsite.example.com,redirect=http://foo.example.com \
      -l com.docker.ucp.mesh.http.8080=external_route=http://foo.example.com,internal_port=8080 \
      --replicas 3 \
      --network ucp-hrm \
      --name lbinfo \
      ahromis/lbinfo:latest";

/// The counter with a WebSocket at `/total`, in Interlock 2's labels.
pub const COUNTER: &str = r"
    web:
      image: dockersuccess/webserver:latest
      environment:
        app_url: app:8080
        WHOAMI_TCP: 2015
      deploy:
        replicas: 2
        labels:
          com.docker.lb.hosts: ${DOMAIN:-app.dockerdemos.com}
          com.docker.lb.port: 2015
          com.docker.lb.websocket_endpoints: /total
      networks:
        - demo
    app:
      image: dockersuccess/counter-demo:latest
      deploy:
        replicas: 5
        endpoint_mode: dnsrr
      networks:
        - demo
        - backend
    db:
      image: redis:latest
      networks:
        - backend
";
/// Its own network.
pub const COUNTER_BACKEND: &str = "    backend:\n      driver: overlay\n";

/// `docker service create` of Interlock's demo on port 8080, with these labels and options besides.
pub fn demo(more: &str) -> String {
    format!(
        r#"docker service create \
    --name demo \
    --network demo \
    --detach=false \
    --label com.docker.lb.port=8080 \
    --env METADATA="demo" \
    {more} \
    ehazlett/docker-demo"#
    )
}

/// Options of [`demo`]: clients with the same `session` cookie stay with their task.
pub const STICKY: &str = "--replicas=5 --label com.docker.lb.hosts=demo.local --label com.docker.lb.sticky_session_cookie=session";
/// Options of [`demo`]: TLS by two secrets.
pub const TERMINATED: &str = "--label com.docker.lb.hosts=demo.local --label com.docker.lb.ssl_cert=demo.local.cert \
                              --label com.docker.lb.ssl_key=demo.local.key";
/// Options of [`demo`]: TLS of its own.
pub const PASSED: &str = "--label com.docker.lb.hosts=pass.local --label com.docker.lb.ssl_passthrough=true";
/// Options of [`demo`]: by its VIP.
pub const BY_VIP: &str = "--replicas=4 --label com.docker.lb.hosts=demo.local --label com.docker.lb.backend_mode=vip";

/// Interlock's service for hosts that nobody has; port 8080.
pub const DEFAULT_HOST: &str = r"docker service create \
    --name demo-default \
    --network demo \
    --detach=false \
    --replicas=1 \
    --label com.docker.lb.default_backend=true \
    --label com.docker.lb.port=8080 \
    ehazlett/interlock-default-app";

/// `docker service create` of Docker Flow Proxy's demo, with these labels besides.
pub fn go_demo(more: &str) -> String {
    format!(
        r"docker service create --name go-demo \
    -e DB=go-demo-db \
    --network go-demo \
    --network proxy \
    --label com.df.notify=true \
    --label com.df.distribute=true \
    --label com.df.port=8080 \
    {more} \
    vfarcic/go-demo"
    )
}

/// Its database; port 27017.
pub const GO_DEMO_DB: &str = "docker service create --name go-demo-db --network go-demo mongo";

/// Options of [`go_demo`]: paths are rewritten, on the request line and alone.
pub const REWRITTEN: [&str; 2] = [
    r"--label com.df.reqRepSearch='^([^\ ]*)\ /something/(.*)' --label com.df.reqRepReplace='\1\ /demo/\2'",
    "--label com.df.reqPathSearchReplace=/something/,/demo/",
];
