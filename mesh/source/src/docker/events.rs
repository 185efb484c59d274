//! The event stream: what has to be looked at again.

use std::collections::BTreeSet;

use super::wire;

/// `/events`, of the kinds that matter here. There are no events for tasks (moby issue 40853).
pub(super) const PATH: &str = "/events?filters=%7B%22type%22%3A%5B%22service%22%2C%22node%22%2C%22network%22%2C%22container%22%5D%7D";
/// An event is a few hundred bytes, and a service's labels are not in it.
const LONGEST_EVENT: usize = 1 << 20;

/// Kinds of objects to list again, and containers to look at again.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Dirty {
    pub(super) networks: bool,
    pub(super) services: bool,
    pub(super) nodes: bool,
    pub(super) tasks: bool,
    pub(super) containers: BTreeSet<String>,
}

impl Dirty {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// One line of the stream. What is not understood is passed over: the regular listing is behind it.
    pub(super) fn take_line(&mut self, line: &[u8]) {
        match serde_json::from_slice::<wire::Event>(line) {
            Ok(event) => self.take(event),
            Err(error) => tracing::debug!(%error, "an event was not understood"),
        }
    }

    fn take(&mut self, event: wire::Event) {
        // Health arrives as "health_status: unhealthy".
        let action = event.action.split(':').next().unwrap_or_default();
        match (event.kind.as_str(), action) {
            ("service", _) => {
                self.services = true;
                self.tasks = true;
            }
            ("node", _) => {
                self.nodes = true;
                self.tasks = true;
            }
            ("network", "connect" | "disconnect") => {
                self.containers.extend(event.actor.attributes.get("container").cloned().flatten().filter(|id| !id.is_empty()));
            }
            ("network", _) => self.networks = true,
            ("container", "start" | "die" | "destroy" | "health_status" | "rename" | "pause" | "unpause") => {
                self.tasks = true;
                if !event.actor.id.is_empty() {
                    self.containers.insert(event.actor.id);
                }
            }
            _ => {}
        }
    }
}

/// Cuts the stream into lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    pub(super) fn push(&mut self, chunk: &[u8], dirty: &mut Dirty) {
        self.rest.extend_from_slice(chunk);
        let mut start = 0;
        while let Some(length) = self.rest[start..].iter().position(|b| *b == b'\n') {
            let line = self.rest[start..start + length].trim_ascii();
            if !line.is_empty() {
                dirty.take_line(line);
            }
            start += length + 1;
        }
        self.rest.drain(..start);
        if self.rest.len() > LONGEST_EVENT {
            tracing::warn!(bytes = self.rest.len(), "an event without an end was passed over");
            self.rest.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_arrive_in_any_pieces() {
        let text = b"{\"Type\":\"service\",\"Action\":\"update\",\"Actor\":{\"ID\":\"s1\"}}\n\
            {\"Type\":\"container\",\"Action\":\"health_status: unhealthy\",\"Actor\":{\"ID\":\"c1\",\"Attributes\":null}}\n\
            garbage\n{\"Type\":7}\n\n{\"Type\":\"volume\",\"Action\":\"create\"}\n\
            {\"Type\":\"network\",\"Action\":\"connect\",\"Actor\":{\"ID\":\"n1\",\"Attributes\":{\"container\":\"c2\"}}}\n";
        let expected = Dirty { services: true, tasks: true, containers: ["c1".to_owned(), "c2".to_owned()].into(), ..Dirty::default() };
        for size in [1, 7, 50, 10_000] {
            let (mut lines, mut dirty) = (Lines::default(), Dirty::default());
            text.chunks(size).for_each(|chunk| lines.push(chunk, &mut dirty));
            assert_eq!(dirty, expected);
        }
    }

    #[test]
    fn uninteresting_events_wake_nobody() {
        let (mut lines, mut dirty) = (Lines::default(), Dirty::default());
        lines.push(
            b"{\"Type\":\"container\",\"Action\":\"exec_create: ls\",\"Actor\":{\"ID\":\"c1\"}}\n{\"Type\":\"secret\"}\n",
            &mut dirty,
        );
        assert!(dirty.is_empty());
    }

    #[test]
    fn an_endless_line_is_passed_over() {
        let (mut lines, mut dirty) = (Lines::default(), Dirty::default());
        lines.push(&vec![b'x'; LONGEST_EVENT + 1], &mut dirty);
        assert!(lines.rest.is_empty() && dirty.is_empty());
    }
}
