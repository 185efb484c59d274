use std::time::Instant;

use http::Request;
use proptest::prelude::*;
use serde_json::Value;

use super::{line::LONGEST, *};
use crate::http::{body::Upload, request::ClientTls};

fn log(fields: &[Field], sample: u32, queue: usize) -> (Rc<WorkerLog>, Receiver<Batch>) {
    let (to, lines) = sync_channel(queue);
    let how = AccessLog { to: LogTarget::Stdout, sample: NonZeroU32::new(sample).unwrap(), fields: fields.to_vec() };
    (Rc::new(WorkerLog::new(Lines { how: Arc::new(how), node: "n\"1".into(), to, counts: Arc::default() })), lines)
}

fn client() -> Client {
    let tls = ClientTls { sni: Some("s.example".into()), is_verified: false, version: "TLSv1.3", ..ClientTls::default() };
    let mut client = Client::new(([192, 0, 2, 1], 7).into(), ([192, 0, 2, 2], 443).into(), false);
    client.tls = Some(tls);
    client
}

fn account(entry: Box<Entry>) -> Account {
    let upload = Upload::default();
    upload.received.set(3);
    Account { lane: None, begun: Instant::now(), status: 200, upload: Rc::new(upload), sent: 4, busy: None, entry: Some(entry) }
}

fn asked(target: &str) -> Wish {
    let (parts, ()) = Request::builder().method("PUT").uri(target).body(()).unwrap().into_parts();
    Wish::new(&parts, Some((&"a.example".parse().unwrap(), &target.parse().unwrap())))
}

#[test]
fn a_line_has_the_fields_that_are_asked_for_in_their_order() {
    let (log, lines) = log(Field::ALL, 1, 8);
    let mut entry = log.request(&client(), asked("/x?token=1"));
    entry.user = Some("jo\"e".into());
    entry.reason = Some("redirect");
    drop(account(entry));
    log.hand_over();
    let line = lines.try_recv().unwrap().bytes;
    assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
    let line: Value = serde_json::from_slice(&line).unwrap();
    for (field, value) in [
        ("node", Value::from("n\"1")),
        ("client", "192.0.2.1".into()),
        ("protocol", "HTTP/1.1".into()),
        ("tls", "TLSv1.3".into()),
        ("sni", "s.example".into()),
        ("method", "PUT".into()),
        ("host", "a.example".into()),
        ("path", "/x".into()),
        ("query", "token=1".into()),
        ("status", 200.into()),
        ("received", 3.into()),
        ("sent", 4.into()),
        ("user", "jo\"e".into()),
        ("retries", 0.into()),
        ("reason", "redirect".into()),
    ] {
        assert_eq!(line[field], value, "{field} in {line}");
    }
    assert!(line["duration_ms"].as_f64().unwrap() < 60_000.0);
    assert_eq!(line.get("upstream"), None, "what there is none of is left out");

    let (log, lines) = self::log(&[Field::Path, Field::Status], 1, 8);
    for _ in 0..2 {
        drop(account(log.request(&client(), asked("/x?token=1"))));
    }
    // What is left is handed over at the end.
    drop(log);
    let batch = lines.try_recv().unwrap();
    assert_eq!((batch.bytes, batch.lines), (b"{\"path\":\"/x\",\"status\":200}\n".repeat(2), 2));
    assert!(!Field::usual().contains(&Field::Query));
    assert!(Field::ALL.iter().all(|field| Field::parse(field.name()) == Some(*field)));
}

#[test]
fn a_full_queue_costs_lines_and_no_time() {
    let (log, batches) = log(&[Field::Status], 1, 2);
    for _ in 0..5 {
        for _ in 0..3 {
            drop(account(log.connection(&client(), "tcp")));
        }
        log.hand_over();
    }
    assert_eq!((log.lines.counts.lost(), batches.try_iter().map(|batch| batch.lines).sum::<u64>()), (9, 6));
}

#[test]
fn a_long_batch_is_handed_over_at_once() {
    let (log, batches) = log(&[Field::Path], 1, 8);
    let path = format!("/{}", "x".repeat(1500));
    for _ in 0..30 {
        drop(account(log.request(&client(), asked(&path))));
    }
    let batch = batches.try_recv().unwrap();
    assert!(batch.bytes.len() >= BATCH && batch.bytes.len() < BATCH + 2 * LONGEST && batch.lines < 30);
    assert_eq!(batch.bytes.iter().filter(|byte| **byte == b'\n').count() as u64, batch.lines);
}

#[test]
fn durations_have_three_decimals() {
    for (duration, expected) in [(0, "0.000"), (499, "0.000"), (500, "0.001"), (1_234_567, "1.235"), (2_000_000_000, "2000.000")] {
        let mut out = Vec::new();
        let mut line = Line::begin(&mut out);
        line.milliseconds(Field::DurationMs, Duration::from_nanos(duration));
        line.end();
        assert_eq!(String::from_utf8(out).unwrap(), format!("{{\"duration_ms\":{expected}}}\n"));
    }
}

#[test]
fn one_of_so_many_is_sampled() {
    let (log, _lines) = log(&[], 3, 1);
    let samples: Vec<bool> = (0..6).map(|_| log.samples()).collect();
    assert_eq!(samples, [true, false, false, true, false, false]);
}

#[test]
fn times_are_dates() {
    let mut second = Second::default();
    for (seconds, expected) in [
        (0, "1970-01-01T00:00:00.000Z"),
        (951_782_399, "2000-02-28T23:59:59.000Z"),
        (951_782_400, "2000-02-29T00:00:00.000Z"),
        (951_868_800, "2000-03-01T00:00:00.000Z"),
        (1_709_210_096, "2024-02-29T12:34:56.000Z"),
        (4_107_542_400, "2100-03-01T00:00:00.000Z"),
    ] {
        let at = UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(rfc3339(at).to_string(), expected);
        let mut out = Vec::new();
        let mut line = Line::begin(&mut out);
        line.time(Field::Time, at, &mut second);
        line.end();
        assert_eq!(String::from_utf8(out).unwrap(), format!("{{\"time\":\"{expected}\"}}\n"));
    }
    assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_millis(1_007)).to_string(), "1970-01-01T00:00:01.007Z");
}

proptest! {
    #[test]
    fn whatever_is_written_is_read_as_it_was(text in any::<String>(), long in "[a-zé\"]{2040,2060}") {
        for text in [text, long] {
            let mut out = Vec::new();
            let mut line = Line::begin(&mut out);
            line.text(Field::Path, &text);
            line.end();
            prop_assert_eq!(out.iter().position(|b| *b == b'\n'), Some(out.len() - 1));
            let read: Value = serde_json::from_slice(&out).unwrap();
            let read = read.get("path").and_then(Value::as_str).unwrap_or_default();
            match read.strip_suffix('…').filter(|_| text.len() > LONGEST) {
                Some(cut) => prop_assert!(text.starts_with(cut) && cut.len() > LONGEST - 4),
                None => prop_assert_eq!(read, text),
            }
        }
    }
}
