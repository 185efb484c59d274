use std::{collections::VecDeque, io::Read as _, task::Waker};

use flate2::read::{DeflateDecoder, GzDecoder, ZlibDecoder};
use http::header::TRAILER;
use proptest::{collection::vec, prelude::*};

use super::*;

const ALL: [Encoding; 3] = [Encoding::Gzip, Encoding::Zlib, Encoding::RawDeflate];

/// A body that comes as it is told to.
struct Script(VecDeque<Step>);

#[derive(Clone, Debug)]
enum Step {
    Data(Bytes),
    Pause,
    Trailers(HeaderMap),
    Break,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("broken")]
struct Broken;

impl Body for Script {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self.0.pop_front() {
            None => Poll::Ready(None),
            Some(Step::Pause) => Poll::Pending,
            Some(Step::Data(data)) => Poll::Ready(Some(Ok(Frame::data(data)))),
            Some(Step::Trailers(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            Some(Step::Break) => Poll::Ready(Some(Err(Broken))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }
}

fn script(steps: impl IntoIterator<Item = Step>) -> Script {
    Script(steps.into_iter().collect())
}

fn data(text: impl Into<Bytes>) -> Step {
    Step::Data(text.into())
}

/// What one look at a body gives; `None` if there is nothing for now.
fn look<B: Body<Data = Bytes> + Unpin>(body: &mut B) -> Option<Option<Result<Frame<Bytes>, B::Error>>> {
    match Pin::new(body).poll_frame(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(frame) => Some(frame),
        Poll::Pending => None,
    }
}

/// All of its data and its trailers, however often one has to look.
fn all<B: Body<Data = Bytes, Error = EncodeError<Broken>> + Unpin>(body: &mut B) -> (Vec<u8>, Option<HeaderMap>) {
    let (mut bytes, mut trailers) = (Vec::new(), None);
    loop {
        match look(body) {
            None => {}
            Some(None) => return (bytes, trailers),
            Some(Some(frame)) => match frame.unwrap().into_data() {
                Ok(data) => {
                    assert!(trailers.is_none() && !data.is_empty());
                    bytes.extend(data);
                }
                Err(frame) => trailers = frame.into_trailers().ok(),
            },
        }
    }
}

fn decode(encoding: Encoding, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match encoding {
        Encoding::Gzip => GzDecoder::new(bytes).read_to_end(&mut out),
        Encoding::Zlib => ZlibDecoder::new(bytes).read_to_end(&mut out),
        Encoding::RawDeflate => DeflateDecoder::new(bytes).read_to_end(&mut out),
    }
    .unwrap();
    out
}

/// What can be read of a stream that has not ended.
fn decode_so_far(encoding: Encoding, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 4096];
    let mut reader: Box<dyn io::Read + '_> = match encoding {
        Encoding::Gzip => Box::new(GzDecoder::new(bytes)),
        Encoding::Zlib => Box::new(ZlibDecoder::new(bytes)),
        Encoding::RawDeflate => Box::new(DeflateDecoder::new(bytes)),
    };
    let mut length = 0;
    while let Ok(read @ 1..) = reader.read(&mut out[length..]) {
        length += read;
    }
    out.truncate(length);
    out
}

fn compression(algorithms: &[CompressionAlgorithm], types: &[&str]) -> Compression {
    Compression { algorithms: algorithms.to_vec(), types: types.iter().map(|t| (*t).to_owned()).collect() }
}

fn gzip() -> Compression {
    compression(&[CompressionAlgorithm::Gzip], &[])
}

fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
}

fn wishes(compression: &Compression, accept: &str) -> Option<Encoding> {
    wish(compression, &Method::GET, Version::HTTP_11, &headers(&[(ACCEPT_ENCODING, accept)])).0
}

fn answer(status: u16, pairs: &[(HeaderName, &str)]) -> Response<Script> {
    let mut answer = Response::new(script([data("a body")]));
    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    *answer.headers_mut() = headers(pairs);
    answer
}

#[test]
fn the_client_says_what_it_reads() {
    use CompressionAlgorithm::{Deflate, Gzip, Identity, RawDeflate};
    let gzip = gzip();
    for (accept, wished) in [
        ("gzip", true),
        ("GZIP", true),
        ("x-gzip", true),
        ("br, gzip ; q=0.5", true),
        ("*", true),
        ("*;q=0.001, br", true),
        ("identity, gzip", true),
        ("", false),
        ("br", false),
        ("gzip;q=0", false),
        ("gzip;q=0.000, *", false),
        ("gzip;q=0.5, identity;q=0.6", false),
        ("*;q=0", false),
        ("identity", false),
        ("gzip;q=2", false),
        ("gzip;q=0.1234", false),
        ("gzip;q=", false),
        ("gzip;level=9", false),
        ("notgzip", false),
    ] {
        assert_eq!(wishes(&gzip, accept).is_some(), wished, "{accept}");
    }
    let both = compression(&[Identity, Deflate, Gzip], &[]);
    assert_eq!(wishes(&both, "gzip, deflate"), Some(Encoding::Zlib), "the list's order");
    assert_eq!(wishes(&both, "gzip;q=0.9, deflate;q=0.8"), Some(Encoding::Gzip), "the client's liking");
    assert_eq!(wishes(&compression(&[RawDeflate, Deflate], &[]), "deflate"), Some(Encoding::RawDeflate));
    assert_eq!(wishes(&compression(&[Identity], &[]), "gzip, identity"), None);
    let two = headers(&[(ACCEPT_ENCODING, "br"), (ACCEPT_ENCODING, "gzip")]);
    assert_eq!(wish(&gzip, &Method::GET, Version::HTTP_2, &two).0, Some(Encoding::Gzip));
    assert_eq!(wish(&gzip, &Method::HEAD, Version::HTTP_11, &two).0, None);
    assert_eq!(wish(&gzip, &Method::GET, Version::HTTP_10, &two).0, None);
    assert_eq!(wish(&gzip, &Method::GET, Version::HTTP_11, &HeaderMap::new()).0, None);
}

#[test]
fn the_answer_says_what_it_is() {
    let plain = answer(
        200,
        &[
            (CONTENT_TYPE, "text/html"),
            (CONTENT_LENGTH, "6"),
            (ETAG, "\"x\""),
            (ACCEPT_RANGES, "bytes"),
            (VARY, "Cookie"),
            (HeaderName::from_static("content-digest"), "x"),
            (TRAILER, "x-sum"),
        ],
    );
    let mut encoded = encode(&gzip(), Wish(Some(Encoding::Gzip)), plain);
    let expected = headers(&[
        (CONTENT_TYPE, "text/html"),
        (ETAG, "W/\"x\""),
        (VARY, "Cookie"),
        (VARY, "Accept-Encoding"),
        (TRAILER, "x-sum"),
        (CONTENT_ENCODING, "gzip"),
    ]);
    assert_eq!(*encoded.headers(), expected);
    assert_eq!((encoded.body().size_hint().upper(), encoded.body().is_end_stream()), (None, false));
    assert_eq!(decode(Encoding::Gzip, &all(encoded.body_mut()).0), b"a body");
    assert!(encoded.body().is_end_stream());

    // One that cannot read it gets it as it is, and caches know.
    let mut plain = encode(&gzip(), Wish(None), answer(200, &[(CONTENT_LENGTH, "6"), (ETAG, "\"x\"")]));
    assert_eq!(*plain.headers(), headers(&[(CONTENT_LENGTH, "6"), (ETAG, "\"x\""), (VARY, "Accept-Encoding")]));
    assert_eq!(all(plain.body_mut()).0, b"a body");
}

#[test]
fn what_is_not_to_be_compressed_stays() {
    let gzip = gzip();
    let is_encoded = |compression: &Compression, status, pairs: &[(HeaderName, &str)]| {
        let before = answer(status, pairs).into_parts().0;
        let encoded = encode(compression, Wish(Some(Encoding::Gzip)), answer(status, pairs));
        let is_encoded = encoded.headers().contains_key(CONTENT_ENCODING) && matches!(encoded.body(), Encoded::Compressed(_));
        assert!(is_encoded || *encoded.headers() == before.headers, "{:?}", encoded.headers());
        is_encoded
    };
    for (status, compressed) in
        [(200, true), (201, true), (202, true), (203, true), (204, false), (206, false), (304, false), (404, false), (500, false)]
    {
        assert_eq!(is_encoded(&gzip, status, &[]), compressed, "{status}");
    }
    for (name, value) in [
        (CONTENT_ENCODING, "br"),
        (CACHE_CONTROL, "public, No-Transform"),
        (CONTENT_LENGTH, "0"),
        (CONTENT_TYPE, "multipart/byteranges; boundary=x"),
        (CONTENT_TYPE, "application/grpc+proto"),
        (ETAG, "unquoted"),
        (ETAG, "\""),
    ] {
        // What was encoded before keeps its header, so look at the body instead.
        let encoded = encode(&gzip, Wish(Some(Encoding::Gzip)), answer(200, &[(name.clone(), value)]));
        assert!(matches!(encoded.body(), Encoded::Plain(_)), "{name}: {value}");
        assert_eq!(*encoded.headers(), headers(&[(name, value)]));
    }
    assert!(!is_encoded(&gzip, 200, &[(ETAG, "\"a\""), (ETAG, "\"b\"")]));
    let listed = compression(&[CompressionAlgorithm::Gzip], &["text/html", "application/json"]);
    for (content, compressed) in
        [("text/html", true), ("TEXT/HTML; charset=utf-8", true), ("application/json", true), ("text/plain", false), ("x", false)]
    {
        assert_eq!(is_encoded(&listed, 200, &[(CONTENT_TYPE, content)]), compressed, "{content}");
    }
    assert!(!is_encoded(&listed, 200, &[]));
    let mut nothing = answer(200, &[]);
    nothing.body_mut().0.clear();
    assert!(matches!(encode(&gzip, Wish(Some(Encoding::Gzip)), nothing).body(), Encoded::Plain(_)));
    // Caches that know already are not told twice, and weak tags stay.
    let known = encode(&gzip, Wish(Some(Encoding::Gzip)), answer(200, &[(VARY, "cookie, accept-encoding"), (ETAG, "W/\"x\"")]));
    assert_eq!((known.headers().get_all(VARY).iter().count(), &known.headers()[ETAG]), (1, &HeaderValue::from_static("W/\"x\"")));
}

#[test]
fn events_arrive_when_they_happen() {
    for encoding in ALL {
        let steps = [data("data: 1\n\n"), Step::Pause, Step::Pause, data("data: 2\n\n"), data("data: 3\n\n"), Step::Pause];
        let mut body = Compressed::new(encoding, script(steps));
        let mut seen = Vec::new();
        let mut next = |body: &mut Compressed<Script>| match look(body) {
            Some(Some(Ok(frame))) => {
                seen.extend(frame.into_data().unwrap());
                Some(decode_so_far(encoding, &seen))
            }
            Some(other) => panic!("{other:?}"),
            None => None,
        };
        assert_eq!(next(&mut body).as_deref(), Some(&b"data: 1\n\n"[..]), "{encoding:?}");
        assert_eq!(next(&mut body), None, "nothing new happened");
        assert_eq!(next(&mut body).as_deref(), Some(&b"data: 1\n\ndata: 2\n\ndata: 3\n\n"[..]));
    }
}

#[test]
fn trailers_come_after_everything() {
    let sum = headers(&[(HeaderName::from_static("x-sum"), "7")]);
    for encoding in ALL {
        let mut body = Compressed::new(encoding, script([data("text"), Step::Pause, Step::Trailers(sum.clone())]));
        let (bytes, trailers) = all(&mut body);
        assert_eq!((decode(encoding, &bytes), trailers), (b"text".to_vec(), Some(sum.clone())));
        assert!(body.is_end_stream());
    }
}

#[test]
fn a_body_that_breaks_off_breaks_off() {
    let mut body = Compressed::new(Encoding::Gzip, script([data("text"), Step::Pause, data("more"), Step::Break]));
    assert!(matches!(look(&mut body), Some(Some(Ok(_)))));
    assert!(matches!(look(&mut body), Some(Some(Err(EncodeError::Body(Broken))))));
    assert!(matches!(look(&mut body), Some(None)), "and no end that looks like one");
}

#[test]
fn long_bodies_come_in_pieces_and_others_have_their_turn() {
    // Zeros become so little that there is nothing to send for long.
    let zeros = Bytes::from(vec![0; 64 * 1024]);
    let mut body = Compressed::new(Encoding::Gzip, script((0..32).map(|_| data(zeros.clone()))));
    assert!(look(&mut body).is_none());
    let (bytes, _) = all(&mut body);
    assert_eq!(decode(Encoding::Gzip, &bytes), vec![0; 2 * 1024 * 1024]);
    assert!(bytes.len() < 20_000, "{}", bytes.len());
    // Noise does not become less.
    let mut state = 1_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
    .take(256 * 1024)
    .collect();
    let mut body = Compressed::new(Encoding::Zlib, script(noise.chunks(10_000).map(|chunk| data(chunk.to_vec()))));
    let Some(Some(Ok(first))) = look(&mut body) else { panic!("nothing came") };
    let first = first.into_data().unwrap();
    assert!((ENOUGH..6 * ENOUGH).contains(&first.len()), "{}", first.len());
    assert_eq!(decode(Encoding::Zlib, &[&first[..], &all(&mut body).0].concat()), noise);
}

proptest! {
    #[test]
    fn what_is_decoded_is_what_was_encoded(pieces in vec((vec(any::<u8>(), 0..300), any::<bool>()), 0..12), which in 0..3_usize) {
        let steps = pieces.iter().flat_map(|(bytes, pause)| std::iter::once(data(bytes.clone())).chain(pause.then_some(Step::Pause)));
        let (bytes, trailers) = all(&mut Compressed::new(ALL[which], script(steps)));
        prop_assert_eq!(decode(ALL[which], &bytes), pieces.into_iter().flat_map(|(bytes, _)| bytes).collect::<Vec<_>>());
        prop_assert!(trailers.is_none());
    }

    #[test]
    fn any_accept_encoding_is_read(value in vec(any::<u8>(), 0..60), text in "[gzip*,;q=.01 ]{0,30}") {
        for value in [HeaderValue::from_bytes(&value), HeaderValue::from_str(&text)].into_iter().flatten() {
            let headers = HeaderMap::from_iter([(ACCEPT_ENCODING, value)]);
            prop_assert!(weight(&headers, &["gzip"], true).is_none_or(|weight| weight <= 1000));
        }
    }

    #[test]
    fn weights_are_read_as_numbers(thousandth in 0..=1000_u16, digits in 0..=3_usize) {
        let text = format!("{:.*}", digits, f64::from(thousandth) / 1000.0);
        let expected = (text.parse::<f64>().unwrap() * 1000.0).round() as u16;
        prop_assert_eq!(thousandths(text.as_bytes()), Some(expected));
        prop_assert_eq!(thousandths(format!("{text}x").as_bytes()), None);
    }
}
