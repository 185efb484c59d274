//! Whether a password is the one that a crypt(3) hash was made of.

use aws_lc_rs::constant_time;
use md5::{Digest, Md5};
use sha_crypt::{PasswordVerifier, ShaCrypt};
use swarmesh_router::model::HashKind;

/// What crypt(3) takes at most.
pub(super) const LONGEST: usize = 512;

/// Above these, one check would take a second or more, and others wait for it.
const MOST_ROUNDS: u32 = 1_000_000;
const MOST_COST: u32 = 14;

/// Whether a hash can be checked in reasonable time.
pub(super) fn is_bearable(kind: HashKind, hash: &str) -> bool {
    let first = hash.split('$').nth(2).unwrap_or_default();
    match kind {
        HashKind::Md5 => true,
        HashKind::Sha256 | HashKind::Sha512 => {
            first.strip_prefix("rounds=").is_none_or(|rounds| rounds.parse().is_ok_and(|rounds: u32| rounds <= MOST_ROUNDS))
        }
        HashKind::Bcrypt => first.parse().is_ok_and(|cost: u32| cost <= MOST_COST),
    }
}

/// Takes milliseconds, or as long as the hash asks for. What is no hash is nobody's.
pub(super) fn verify(kind: HashKind, hash: &str, password: &str) -> bool {
    if password.len() > LONGEST {
        return false;
    }
    match kind {
        HashKind::Md5 => verify_md5(hash, password.as_bytes()),
        HashKind::Sha256 | HashKind::Sha512 => ShaCrypt::default().verify_password(password.as_bytes(), hash).is_ok(),
        HashKind::Bcrypt => bcrypt::verify(password, hash).unwrap_or(false),
    }
}

fn verify_md5(hash: &str, password: &[u8]) -> bool {
    let mut fields = hash.split('$');
    let (Some(""), Some("1"), Some(salt), Some(sum), None) = (fields.next(), fields.next(), fields.next(), fields.next(), fields.next())
    else {
        return false;
    };
    // More of the salt does not count.
    let salt = salt.as_bytes().get(..8).unwrap_or(salt.as_bytes());
    constant_time::verify_slices_are_equal(&md5_text(&md5_crypt(password, salt)), sum.as_bytes()).is_ok()
}

/// The scheme of FreeBSD's crypt, `$1$`.
fn md5_crypt(password: &[u8], salt: &[u8]) -> [u8; 16] {
    let inner: [u8; 16] = Md5::new().chain_update(password).chain_update(salt).chain_update(password).finalize().into();
    let mut outer = Md5::new().chain_update(password).chain_update("$1$").chain_update(salt);
    for chunk in password.chunks(16) {
        outer.update(inner.get(..chunk.len()).unwrap_or_default());
    }
    // For each bit of the length, from the lowest: a zero, or the first letter.
    let mut length = password.len();
    while length > 0 {
        outer.update(if length & 1 == 1 { &[0][..] } else { password.get(..1).unwrap_or_default() });
        length >>= 1;
    }
    let mut sum: [u8; 16] = outer.finalize().into();
    for round in 0..1000 {
        let odd = round % 2 == 1;
        let mut hasher = Md5::new();
        hasher.update(if odd { password } else { &sum });
        if round % 3 != 0 {
            hasher.update(salt);
        }
        if round % 7 != 0 {
            hasher.update(password);
        }
        hasher.update(if odd { &sum } else { password });
        sum = hasher.finalize().into();
    }
    sum
}

/// In crypt's letters, six bits each from the lowest, three shuffled bytes at a time.
fn md5_text(sum: &[u8; 16]) -> [u8; 22] {
    const LETTERS: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    const GROUPS: [[usize; 3]; 5] = [[0, 6, 12], [1, 7, 13], [2, 8, 14], [3, 9, 15], [4, 10, 5]];
    let groups = GROUPS.map(|group| group.into_iter().fold(0, |bits, at| bits << 8 | u32::from(sum[at])));
    let mut letters = groups.into_iter().chain([u32::from(sum[11])]).flat_map(|bits| (0..4).map(move |n| bits >> (6 * n) & 63));
    // The last byte has two letters; the other two would be zeros.
    std::array::from_fn(|_| letters.next().and_then(|letter| LETTERS.get(letter as usize)).copied().unwrap_or(b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `openssl passwd -1`, `-5` and `-6`, and by libxcrypt.
    const MADE_ELSEWHERE: [(HashKind, &str, &str); 14] = [
        (HashKind::Md5, "secret", "$1$abcdefgh$cHJi5PXp/ki/ktXzqlk6I1"),
        (HashKind::Md5, "pa:ss wörd €", "$1$x$L7KzbxOoCmcKxo87lB2Hq/"),
        (
            HashKind::Md5,
            "a much longer password than any block of sixteen bytes, and than sixty-four, too",
            "$1$saltsalt$4Q2E1RzRA76rMousbUzdc.",
        ),
        (HashKind::Sha256, "secret", "$5$abcdefgh$gruCpC7VkOTspMQTTSAR8mtlO9Upms.fwqE5y16JVM."),
        (HashKind::Sha256, "pa:ss wörd €", "$5$x$K37mlqoHEr.UWXhbTCMWami1YS72Ce.MP7IbFR7j927"),
        (
            HashKind::Sha256,
            "a much longer password than any block of sixteen bytes, and than sixty-four, too",
            "$5$saltsalt$k7/3ncUg2B.KhYji60t7wulLqvK2xYm/NeKM3IxyYZA",
        ),
        (HashKind::Sha512, "secret", "$6$abcdefgh$ltjgWl6579NluT/Vi1nwEvcil.G5Nbc4NiXZaNGStk8PSwGfQv72N2CKPPrVACtLtip/cZ/1GM/O6IND4WQhG."),
        (HashKind::Sha512, "pa:ss wörd €", "$6$x$sK99S71KJ2EObfy2wx7bjoRxPY25RyCwnxDrljzf3wGtx.5CX6BtoPTEE4Lo1YkexAPgM8LRpsCBoGB4zAZKt/"),
        (
            HashKind::Sha512,
            "a much longer password than any block of sixteen bytes, and than sixty-four, too",
            "$6$saltsalt$doDCpq4IgXXNpFEBnjnXEStcL9WJoPusdlfTV27Q3j6g98FENZ/ZgIxHFuOyAtzaEYxin.Rr.Md/1GjSaxUuD0",
        ),
        (HashKind::Sha256, "secret", "$5$rounds=1000$abcdefghijklmnop$FzYoqjtuN.mjYqssIob4upmoKbZEpkdQMtytZuqNN/6"),
        (
            HashKind::Sha512,
            "secret",
            "$6$rounds=12345$abc$.urMXJdx6cg.rnOhsOQiKTYa2G0UrmWEKpCZeXBibmpJqTnTnY1kxRukP0w/9HxkNzwQgkrEEfmRO/5vTiHWs1",
        ),
        (HashKind::Bcrypt, "sécret", "$2a$05$4GOuyn7GDKIjkcucTWGfeelXpvEaBF5YNwzT2KkUZvdSgZmjJdG5e"),
        (HashKind::Bcrypt, "sécret", "$2b$05$4GOuyn7GDKIjkcucTWGfeelXpvEaBF5YNwzT2KkUZvdSgZmjJdG5e"),
        (HashKind::Bcrypt, "sécret", "$2y$05$4GOuyn7GDKIjkcucTWGfeelXpvEaBF5YNwzT2KkUZvdSgZmjJdG5e"),
    ];

    #[test]
    fn hashes_made_elsewhere_are_verified() {
        for (kind, password, hash) in MADE_ELSEWHERE {
            assert!(verify(kind, hash, password), "{hash}");
            assert!(is_bearable(kind, hash), "{hash}");
            for wrong in [format!("{password}x"), password.chars().skip(1).collect(), password.to_uppercase()] {
                assert_eq!(verify(kind, hash, &wrong), wrong == password, "{hash} {wrong:?}");
            }
        }
    }

    #[test]
    fn what_is_no_hash_is_nobodys() {
        for (kind, _, hash) in MADE_ELSEWHERE {
            for end in [0, 1, 3, 5, hash.len() / 2, hash.len() - 1] {
                assert!(!verify(kind, &hash[..end], ""), "{}", &hash[..end]);
            }
            assert!(!verify(kind, &format!("{hash}$"), "secret"));
        }
        assert!(!verify(HashKind::Sha512, "$6$rounds=10$abc$x", "secret"));
        assert!(!verify(HashKind::Md5, "$1$é$x", "secret"));
        assert!(!verify(HashKind::Sha256, "$5$é$x", "secret"));
    }

    #[test]
    fn hashes_that_take_too_long_are_known() {
        for (kind, hash) in [
            (HashKind::Sha512, "$6$rounds=1000001$salt$x"),
            (HashKind::Sha256, "$5$rounds=99999999999$salt$x"),
            (HashKind::Bcrypt, "$2b$15$abcdefghijklmnopqrstuv"),
            (HashKind::Bcrypt, "$2b$x$abcdefghijklmnopqrstuv"),
        ] {
            assert!(!is_bearable(kind, hash), "{hash}");
        }
        assert!(!verify(HashKind::Md5, "$1$salt$x", &"x".repeat(LONGEST + 1)));
    }
}
