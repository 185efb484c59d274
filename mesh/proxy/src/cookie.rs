//! Cookies in headers. What is not one is passed over; nothing is copied.

use http::{
    HeaderMap,
    header::{COOKIE, SET_COOKIE},
};

/// The values that a client shows under a name. HTTP/2 clients send several `cookie` headers, and one cookie may come twice.
/// Empty values have nothing to say.
pub(crate) fn shown<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    headers.get_all(COOKIE).iter().flat_map(|header| header.as_bytes().split(|b| *b == b';')).filter_map(move |pair| value(pair, name))
}

/// The values that an answer gives to a name.
pub(crate) fn set<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    headers.get_all(SET_COOKIE).iter().filter_map(move |header| value(header.as_bytes().split(|b| *b == b';').next()?, name))
}

fn value<'a>(pair: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let rest = pair.trim_ascii_start().strip_prefix(name.as_bytes())?;
    let value = rest.trim_ascii_start().strip_prefix(b"=")?.trim_ascii();
    (!value.is_empty()).then_some(value)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn headers(lines: &[&str]) -> HeaderMap {
        lines.iter().map(|line| (COOKIE, HeaderValue::from_bytes(line.as_bytes()).unwrap())).collect()
    }

    #[test]
    fn a_cookie_is_found_where_it_may_be() {
        let all = |lines: &[&str]| shown(&headers(lines), "id").map(|v| String::from_utf8(v.to_vec()).unwrap()).collect::<Vec<_>>();
        assert_eq!(all(&["id=1"]), ["1"]);
        assert_eq!(all(&["a=b; id=1;c=d", "x=y", "id=2"]), ["1", "2"]);
        assert_eq!(all(&[" id = 1 =2 "]), ["1 =2"]);
        assert_eq!(all(&["id=\"q\""]), ["\"q\""]);
        for none in ["", ";", "id", "id=", "id= ;", "=1", "xid=1", "ids=1", "ID=1", "a=id=1", "a=b id=1"] {
            assert_eq!(all(&[none]), [""; 0], "{none:?}");
        }
    }

    #[test]
    fn an_answer_sets_what_stands_first() {
        let headers: HeaderMap = ["id=1; Path=/; HttpOnly", "other=2; id=3", "id=; Max-Age=0", "id=4"]
            .into_iter()
            .map(|line| (SET_COOKIE, HeaderValue::from_static(line)))
            .collect();
        assert_eq!(set(&headers, "id").collect::<Vec<_>>(), [b"1", b"4"]);
    }

    proptest! {
        /// The same as splitting text, for everything that a header can hold.
        #[test]
        fn any_header_is_read_as_a_plain_reading_would(lines in vec("[ \tid=;\"a]{0,24}", 0..4), noise in vec(any::<u8>(), 0..40)) {
            let mut map = HeaderMap::new();
            let mut expected = Vec::new();
            for line in &lines {
                let Ok(header) = HeaderValue::from_str(line) else { continue };
                map.append(COOKIE, header);
                for pair in line.split(';') {
                    if let Some((name, value)) = pair.split_once('=')
                        && name.trim() == "id" && !value.trim().is_empty() {
                        expected.push(value.trim().as_bytes());
                    }
                }
            }
            prop_assert_eq!(shown(&map, "id").collect::<Vec<_>>(), expected);
            if let Ok(header) = HeaderValue::from_bytes(&noise) {
                let map = HeaderMap::from_iter([(COOKIE, header.clone()), (SET_COOKIE, header)]);
                prop_assert!(shown(&map, "id").chain(set(&map, "id")).all(|v| !v.is_empty()));
            }
        }
    }
}
