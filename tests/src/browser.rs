//! Debian's chromium without a screen, driven by chromedriver's WebDriver (W3C) interface.
//!
//! Both live in a client's network namespace. Names lead to the addresses that the caller gives and nowhere else, so no name
//! server is asked and nothing leaves the lab.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{netns::within, patience::patient};

const PORT: u16 = 9515;
const DRIVER_STARTS: Duration = Duration::from_secs(20);
/// A browser that starts is the slowest thing that is asked for.
const ANSWERS: Duration = Duration::from_secs(60);

/// chromedriver; it ends when dropped.
#[derive(Debug)]
pub struct Driver {
    namespace: PathBuf,
    directory: PathBuf,
    process: Child,
}

impl Driver {
    /// `command` runs what is added to it in the namespace; `directory` is for profiles and logs, and the caller's to remove.
    pub fn start(mut command: Command, namespace: PathBuf, directory: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&directory)?;
        let log = File::create(directory.join("chromedriver.log"))?;
        command.arg("chromedriver").arg(format!("--port={PORT}"));
        // Whatever a browser keeps for its user goes there too.
        for name in ["HOME", "TMPDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"] {
            command.env(name, &directory);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let process = command.spawn().context("cannot start chromedriver")?;
        let mut driver = Self { namespace, directory, process };
        let started = Instant::now();
        while !driver.call("GET", "/status", &Value::Null).is_ok_and(|status| status["ready"] == true) {
            if let Some(status) = driver.process.try_wait()? {
                let log = std::fs::read_to_string(driver.directory.join("chromedriver.log")).unwrap_or_default();
                bail!("chromedriver ended with {status}; is chromium-driver installed? {}", log.trim());
            }
            ensure!(started.elapsed() < patient(DRIVER_STARTS), "chromedriver does not answer");
            sleep(Duration::from_millis(50));
        }
        Ok(driver)
    }

    /// A browser with a new, empty profile of this name. `hosts` lead to `address`.
    pub fn open(&self, profile: &str, hosts: &[&str], address: IpAddr) -> Result<Browser<'_>> {
        let rules: String = hosts.iter().map(|host| format!("MAP {host} {address}, ")).collect();
        let profile = self.directory.join(profile);
        ensure!(!profile.exists(), "the profile {} is not new", profile.display());
        // Pages are asked for as they are named: Chromium tries https for http, and one time in fifty shows why that failed instead of
        // going back, whatever the alert.
        let options = json!({"args": [
            "--disable-features=HttpsUpgrades",
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
            format!("--user-data-dir={}", profile.display()), format!("--host-resolver-rules={rules}MAP * ~NOTFOUND"),
        ]});
        let wanted = json!({"capabilities": {"alwaysMatch": {"acceptInsecureCerts": true, "goog:chromeOptions": options}}});
        let session = self.call("POST", "/session", &wanted).context("cannot open a browser")?;
        let id = session["sessionId"].as_str().context("a browser without a session")?.to_owned();
        Ok(Browser { driver: self, id })
    }

    /// A command of WebDriver and its value.
    fn call(&self, method: &str, path: &str, parameters: &Value) -> Result<Value> {
        let body = if parameters.is_null() { String::new() } else { parameters.to_string() };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{PORT}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let (head, body) = within(&self.namespace, move || {
            let mut stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)))?;
            stream.set_read_timeout(Some(patient(ANSWERS)))?;
            stream.write_all(request.as_bytes())?;
            let mut stream = BufReader::new(stream);
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") && stream.read_line(&mut head)? > 0 {}
            // It keeps the connection, whatever it is told.
            let length = head.lines().find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
            let mut body = vec![0; length.unwrap_or(0)];
            stream.read_exact(&mut body)?;
            std::io::Result::Ok((head, body))
        })?
        .with_context(|| format!("{method} {path} of chromedriver"))?;
        let value = serde_json::from_slice::<Value>(&body).with_context(|| format!("{method} {path}: {head}"))?["value"].take();
        ensure!(head.starts_with("HTTP/1.1 200"), "{method} {path}: {}: {}", value["error"], value["message"]);
        Ok(value)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// One browser with one profile; closed when dropped.
#[derive(Debug)]
pub struct Browser<'a> {
    driver: &'a Driver,
    id: String,
}

impl Browser<'_> {
    /// Loads a page, as one does by the address bar; returns the text that is shown.
    pub fn load(&self, url: &str) -> Result<String> {
        self.command("POST", "/url", &json!({"url": url})).with_context(|| format!("loading {url}"))?;
        let text = self.command("POST", "/execute/sync", &json!({"script": "return document.body.innerText", "args": []}))?;
        Ok(text.as_str().context("a page without text")?.to_owned())
    }

    /// What the page's script says, which calls `done`.
    pub fn ask_page(&self, script: &str) -> Result<Value> {
        let script = format!("const done = arguments[arguments.length - 1];\n{script}");
        self.command("POST", "/execute/async", &json!({"script": script, "args": []}))
    }

    /// The cookies that the page's host gets, by name.
    pub fn cookies(&self) -> Result<Vec<String>> {
        let cookies = self.command("GET", "/cookie", &Value::Null)?;
        Ok(cookies.as_array().into_iter().flatten().filter_map(|c| Some(c["name"].as_str()?.to_owned())).collect())
    }

    pub fn forget_cookies(&self) -> Result<()> {
        self.command("DELETE", "/cookie", &Value::Null).map(drop)
    }

    fn command(&self, method: &str, path: &str, parameters: &Value) -> Result<Value> {
        self.driver.call(method, &format!("/session/{}{path}", self.id), parameters)
    }
}

impl Drop for Browser<'_> {
    fn drop(&mut self) {
        // What does not close ends with its lab.
        let _ = self.command("DELETE", "", &Value::Null);
    }
}
