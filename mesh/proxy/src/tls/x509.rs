//! When a certificate is valid: the one thing that the TLS library does not tell of a certificate of our own.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
/// `[0]`, which is the version.
const VERSION: u8 = 0xa0;

/// From the first to the last second at which a certificate counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) from: SystemTime,
    pub(super) to: SystemTime,
}

/// RFC 5280, 4.1. `None` for what is no certificate.
pub(super) fn validity(certificate: &[u8]) -> Option<Validity> {
    let mut outer = certificate;
    let mut certificate = element(&mut outer, SEQUENCE).filter(|_| outer.is_empty())?;
    let mut signed = element(&mut certificate, SEQUENCE)?;
    if signed.first() == Some(&VERSION) {
        element(&mut signed, VERSION)?;
    }
    element(&mut signed, INTEGER)?;
    let (_algorithm, _issuer) = (element(&mut signed, SEQUENCE)?, element(&mut signed, SEQUENCE)?);
    let mut validity = element(&mut signed, SEQUENCE)?;
    Some(Validity { from: time(&mut validity)?, to: time(&mut validity)? })
}

fn element<'a>(bytes: &mut &'a [u8], tag: u8) -> Option<&'a [u8]> {
    let (&[found, length], mut rest) = bytes.split_first_chunk::<2>()?;
    if found != tag {
        return None;
    }
    let length = if length < 0x80 {
        usize::from(length)
    } else {
        let (digits, behind) = rest.split_at_checked(usize::from(length & 0x7f)).filter(|(digits, _)| (1..=4).contains(&digits.len()))?;
        rest = behind;
        digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit))
    };
    let (content, behind) = rest.split_at_checked(length)?;
    *bytes = behind;
    Some(content)
}

fn time(bytes: &mut &[u8]) -> Option<SystemTime> {
    let general = bytes.first() == Some(&GENERALIZED_TIME);
    let text = element(bytes, if general { GENERALIZED_TIME } else { UTC_TIME })?.strip_suffix(b"Z")?;
    if text.len() != if general { 14 } else { 12 } || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let mut pairs = text.chunks_exact(2).map(|pair| i64::from(pair[0] - b'0') * 10 + i64::from(pair[1] - b'0'));
    let mut next = || pairs.next();
    let year = if general {
        next()? * 100 + next()?
    } else {
        let year = next()?;
        if year < 50 { 2000 + year } else { 1900 + year }
    };
    let (month, day, hour, minute, second) = (next()?, next()?, next()?, next()?, next()?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let seconds = ((days(year, month, day) * 24 + hour) * 60 + minute) * 60 + second;
    let apart = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { UNIX_EPOCH.checked_sub(apart) } else { UNIX_EPOCH.checked_add(apart) }
}

/// From 1970-01-01 to a day of the Gregorian calendar. Years are counted from March, so that the odd day is a year's last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    const TO_1970: i64 = 719_468;
    year * 365 + leap_days + (153 * month + 2) / 5 + day - 1 - TO_1970
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn certificate(from: (i32, u8, u8), to: (i32, u8, u8)) -> Vec<u8> {
        let mut params = CertificateParams::new(["a.example".to_owned()]).unwrap();
        params.not_before = date_time_ymd(from.0, from.1, from.2);
        params.not_after = date_time_ymd(to.0, to.1, to.2);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn both_ends_are_read_in_either_form() {
        for (from, to, expected) in [
            ((1970, 1, 1), (2049, 12, 31), (0, 2_524_521_600)),
            ((2024, 2, 29), (2050, 1, 1), (1_709_164_800, 2_524_608_000)),
            ((1999, 12, 31), (2100, 3, 1), (946_598_400, 4_107_542_400)),
            ((2000, 3, 1), (9999, 12, 31), (951_868_800, 253_402_214_400)),
        ] {
            let validity = validity(&certificate(from, to)).unwrap();
            let seconds = |at: SystemTime| at.duration_since(UNIX_EPOCH).unwrap().as_secs();
            assert_eq!((seconds(validity.from), seconds(validity.to)), expected, "{from:?} {to:?}");
        }
    }

    #[test]
    fn what_is_no_time_is_none() {
        for text in ["240230", "24022912000Z", "241329120000Z", "240132120000Z", "24010124000Z0", "24010112000aZ"] {
            let bytes = [&[UTC_TIME, text.len() as u8], text.as_bytes()].concat();
            assert_eq!(time(&mut bytes.as_slice()), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(changes in vec((0usize..400, any::<u8>()), 1..8), length in 0usize..400) {
            let mut bytes = certificate((2024, 1, 1), (2025, 1, 1));
            bytes.truncate(length);
            for (at, byte) in changes {
                if let Some(place) = bytes.get_mut(at) {
                    *place = byte;
                }
            }
            let _ = validity(&bytes);
        }
    }
}
