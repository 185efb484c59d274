//! `docker service create …` as documents print it, as a service of a stack file.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

/// A line for the `services` of a stack, with the name that the command gives. The server in it listens on `ports`.
pub fn service(command: &str, ports: &str) -> Result<String> {
    let words = words(command)?;
    let mut words = words.iter().map(String::as_str).peekable();
    for expected in ["docker", "service", "create"] {
        ensure!(words.next() == Some(expected), "not a docker service create: {command}");
    }
    let (mut name, mut image, mut replicas) = (None, None, 1);
    let (mut networks, mut published) = (Vec::new(), Vec::new());
    let (mut labels, mut environment) = (BTreeMap::new(), BTreeMap::from([("WHOAMI_TCP".to_owned(), ports.to_owned())]));
    while let Some(word) = words.next() {
        if !word.starts_with('-') {
            ensure!(image.replace(word.to_owned()).is_none(), "a second image: {word}");
            continue;
        }
        let (option, value) = match word.split_once('=') {
            Some((option, value)) if option.starts_with("--") => (option, value),
            _ => (word, words.next().with_context(|| format!("{word} has no value"))?),
        };
        let pair = || value.split_once('=').with_context(|| format!("{option} {value} has no ="));
        // What a stack file would take for a variable is doubled.
        let kept = |(name, value): (&str, &str)| (name.to_owned(), value.replace('$', "$$"));
        match option {
            "--name" => name = Some(value.to_owned()),
            "--network" => networks.push(value.to_owned()),
            "--replicas" => replicas = value.parse()?,
            "--label" | "-l" => labels.extend([kept(pair()?)]),
            "--env" | "-e" => environment.extend([kept(pair()?)]),
            "--publish" | "-p" => published.push(value.to_owned()),
            "--detach" => {}
            _ => bail!("{option} is not known here"),
        }
    }
    let name = name.context("it has no name")?;
    let image = image.context("it has no image")?;
    let deploy = json!({"replicas": replicas, "labels": labels});
    let service = json!({"image": image, "networks": networks, "ports": published, "environment": environment, "deploy": deploy});
    Ok(format!("    {name}: {service}\n"))
}

/// The command's own options and image, for an engine that is to make the service.
pub fn options(command: &str) -> Result<Vec<String>> {
    let words = words(command)?;
    let own = words
        .strip_prefix(&["docker", "service", "create"].map(str::to_owned))
        .with_context(|| format!("not a docker service create: {command}"))?;
    // Whoever makes several does not wait for each.
    Ok(own.iter().filter(|word| *word != "--detach=false").cloned().collect())
}

/// As a shell takes a command apart: quotes, and backslashes before what they protect.
fn words(command: &str) -> Result<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut rest = command.chars();
    while let Some(c) = rest.next() {
        match c {
            '\\' => match rest.next().context("a backslash at the end")? {
                '\n' => {}
                protected => word.get_or_insert_default().push(protected),
            },
            '\'' | '"' => {
                let inside = word.get_or_insert_default();
                loop {
                    match rest.next().context("a quote without its partner")? {
                        end if end == c => break,
                        inner => inside.push(inner),
                    }
                }
            }
            c if c.is_whitespace() => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_command_becomes_a_service() {
        let printed = r#"docker service create \
    --name demo \
    --network demo -p 8000 \
    --detach=false \
    --replicas=5 \
    --label com.docker.lb.hosts=demo.local \
    -l com.df.reqRepSearch='^([^\ ]*)\ /something/(.*)$' \
    --env METADATA="demo sticky" \
    ehazlett/docker-demo"#;
        let line = service(printed, "8080").unwrap();
        let (name, service) = line.trim().split_once(": ").unwrap();
        let service: serde_json::Value = serde_json::from_str(service).unwrap();
        assert_eq!((name, &service["image"]), ("demo", &json!("ehazlett/docker-demo")));
        assert_eq!(service["deploy"]["replicas"], 5);
        assert_eq!(service["deploy"]["labels"]["com.df.reqRepSearch"], r"^([^\ ]*)\ /something/(.*)$$");
        assert_eq!(service["environment"], json!({"METADATA": "demo sticky", "WHOAMI_TCP": "8080"}));
        assert_eq!(service["ports"], json!(["8000"]));
    }

    #[test]
    fn a_printed_command_is_taken_apart_for_an_engine() {
        let taken =
            options("docker service create \\\n --name demo --detach=false --env METADATA=\"demo sticky\" ehazlett/docker-demo").unwrap();
        assert_eq!(taken, ["--name", "demo", "--env", "METADATA=demo sticky", "ehazlett/docker-demo"]);
        assert!(options("docker run x").is_err());
    }

    #[test]
    fn what_is_not_understood_is_not_left_out() {
        for wrong in
            ["docker run x", "docker service create --mount a --name x y", "docker service create x", "docker service create --name x"]
        {
            assert!(service(wrong, "80").is_err(), "{wrong}");
        }
    }
}
