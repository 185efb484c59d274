//! A line as an object of JSON. It is written for each request, so nothing here goes through `core::fmt`, which costs as much as
//! the rest of a request's bookkeeping (PERFORMANCE.md).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Field;

/// Longer texts are cut: what waits must not be large.
pub(super) const LONGEST: usize = 2048;

/// An object that is being written.
pub(super) struct Line<'o> {
    out: &'o mut Vec<u8>,
    is_empty: bool,
}

impl<'o> Line<'o> {
    /// Behind what is there.
    pub(super) const fn begin(out: &'o mut Vec<u8>) -> Self {
        Self { out, is_empty: true }
    }

    fn key(&mut self, field: Field) {
        self.out.push(if std::mem::take(&mut self.is_empty) { b'{' } else { b',' });
        self.out.extend_from_slice(field.key());
    }

    pub(super) fn number(&mut self, field: Field, value: u64) {
        self.key(field);
        self.out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }

    /// With three decimals.
    pub(super) fn milliseconds(&mut self, field: Field, value: Duration) {
        let micros = value.as_nanos().saturating_add(500) / 1000;
        self.number(field, u64::try_from(micros / 1000).unwrap_or(u64::MAX));
        self.out.push(b'.');
        self.out.extend_from_slice(&three_digits(micros % 1000));
    }

    /// As [`rfc3339`].
    pub(super) fn time(&mut self, field: Field, at: SystemTime, second: &mut Second) {
        let since = at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        self.key(field);
        self.out.push(b'"');
        self.out.extend_from_slice(second.of(since.as_secs()));
        self.out.push(b'.');
        self.out.extend_from_slice(&three_digits(since.subsec_millis().into()));
        self.out.extend_from_slice(b"Z\"");
    }

    /// Left out if it is empty.
    pub(super) fn text(&mut self, field: Field, text: &str) {
        if text.is_empty() {
            return;
        }
        self.key(field);
        let short = &text[..text.floor_char_boundary(LONGEST)];
        if short.bytes().all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\') {
            self.out.push(b'"');
            self.out.extend_from_slice(short.as_bytes());
            self.out.push(b'"');
        } else {
            // Escapes all that JSON wants escaped, ends of lines among it. Writing to a Vec does not fail.
            let _ = serde_json::to_writer(&mut *self.out, short);
        }
        if short.len() < text.len() {
            self.out.pop();
            self.out.extend_from_slice("…\"".as_bytes());
        }
    }

    pub(super) fn end(self) {
        if self.is_empty {
            self.out.push(b'{');
        }
        self.out.extend_from_slice(b"}\n");
    }
}

/// Of a number below 1000.
fn three_digits(number: u128) -> [u8; 3] {
    [number / 100, number / 10 % 10, number % 10].map(|digit| b'0' + u8::try_from(digit).unwrap_or_default())
}

/// A second's date and time, which many lines share.
#[derive(Debug, Default)]
pub(super) struct Second {
    /// Since 1970; `text` is empty before the first.
    number: u64,
    text: String,
}

impl Second {
    fn of(&mut self, number: u64) -> &[u8] {
        if self.number != number || self.text.is_empty() {
            *self = Self { number, text: date_and_time(number).to_string() };
        }
        self.text.as_bytes()
    }
}

/// In UTC, with milliseconds.
pub(crate) fn rfc3339(at: SystemTime) -> impl std::fmt::Display {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    std::fmt::from_fn(move |f| write!(f, "{}.{:03}Z", date_and_time(since.as_secs()), since.subsec_millis()))
}

/// `seconds` since 1970, without a zone.
fn date_and_time(seconds: u64) -> impl std::fmt::Display {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years are counted from March, in eras of 400, so that the odd day is a year's last.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, year) = (day - (153 * month + 2) / 5 + 1, year + era * 400);
    let (year, month) = if month < 10 { (year, month + 3) } else { (year + 1, month - 9) };
    std::fmt::from_fn(move |f| write!(f, "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60))
}
