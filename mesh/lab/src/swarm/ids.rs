//! Ids that look like Docker's and come out the same each time.

/// 25 base-36 digits: enough for every 128-bit number.
const DOCKER_ID_DIGITS: usize = 25;

/// FNV-1a.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// SplitMix64's last step: every input has its own output.
const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// As `mix`, within 48 bits.
const fn mix48(x: u64, factor: u64) -> u64 {
    const MASK: u64 = (1 << 48) - 1;
    let x = (x & MASK).wrapping_mul(factor) & MASK;
    (x ^ (x >> 24)).wrapping_mul(factor) & MASK
}

/// The id of the `counter`th object: its low half is one-to-one with the counter, so ids never meet.
pub(super) fn object(counter: u64, name: &str) -> String {
    let mut rest = (u128::from(mix(hash(name) ^ counter)) << 64) | u128::from(mix(counter));
    let mut digits = [b'0'; DOCKER_ID_DIGITS];
    for digit in digits.iter_mut().rev() {
        // A remainder of 36 always fits.
        *digit = b"0123456789abcdefghijklmnopqrstuvwxyz"[(rest % 36) as usize];
        rest /= 36;
    }
    digits.iter().map(|d| char::from(*d)).collect()
}

/// 64 hex digits, of which the first twelve (Docker's short id, the default hostname) are already unique.
pub(super) fn container(counter: u64, name: &str) -> String {
    let rest = [mix(counter ^ hash(name)), mix(counter ^ 0x5dee_ce66), mix(hash(name))];
    format!("{:012x}{:016x}{:016x}{:016x}{:04x}", mix48(counter, 0x5851_f42d_4c95), rest[0], rest[1], rest[2], rest[0] as u16)
}

/// 12 hex digits, unique.
pub(super) fn sandbox(counter: u64) -> String {
    format!("{:012x}", mix48(counter, 0x2545_f491_4f6d))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_have_dockers_shape_and_never_meet() {
        let mut seen = HashSet::new();
        for counter in 0..20_000 {
            let (object, container, sandbox) = (object(counter, "web"), container(counter, "web"), sandbox(counter));
            assert!(object.len() == 25 && object.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase()), "{object}");
            assert!(container.len() == 64 && container.bytes().all(|b| b.is_ascii_hexdigit()), "{container}");
            assert_eq!(sandbox.len(), 12);
            assert!(seen.insert(object) && seen.insert(container[..12].to_owned()) && seen.insert(format!("s{sandbox}")));
        }
    }

    #[test]
    fn ids_depend_on_counter_and_name_only() {
        assert_eq!(object(7, "web"), object(7, "web"));
        assert_ne!(object(7, "web"), object(7, "api"));
        assert_ne!(object(7, "web"), object(8, "web"));
    }
}
