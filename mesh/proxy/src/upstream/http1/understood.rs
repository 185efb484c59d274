//! What a backend's bytes mean, to hyper's client and to ours: for tests and `fuzz/`, and for nobody else.
#![allow(clippy::unwrap_used, reason = "a connection of loopback that fails is a finding")]
#![cfg_attr(not(feature = "fuzz"), allow(unreachable_pub, reason = "only fuzz/ reaches it"))]

use http_body::Body as _;
use hyper_util::rt::TokioIo;
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpListener,
    task::{spawn_local, yield_now},
    time::{sleep, timeout},
};

use super::*;

/// An answer that is waited for longer does not come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// What a client made of what it read.
#[derive(Debug, PartialEq, Eq)]
pub enum Understood {
    Answer {
        status: u16,
        headers: Vec<(String, Vec<u8>)>,
        body: Vec<u8>,
        trailers: Option<Vec<(String, Vec<u8>)>>,
        /// The body came to its end.
        is_whole: bool,
        /// The connection can carry the next request. Not asked where the backend closes it.
        is_idle: bool,
    },
    Nothing,
}

/// What a backend says, in these pieces, and whether it closes then.
#[derive(Clone, Debug)]
pub struct Said {
    pub method: Method,
    pub pieces: Vec<Vec<u8>>,
    pub closes: bool,
}

impl Said {
    /// A connection to a backend that waits for a request's end, and then says this.
    async fn connect(&self) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        // Thousands of connections leave nothing behind that waits for its time.
        stream.set_zero_linger().unwrap();
        let (mut backend, _) = listener.accept().await.unwrap();
        backend.set_nodelay(true).unwrap();
        let said = self.clone();
        spawn_local(async move {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                if backend.read_buf(&mut request).await.unwrap() == 0 {
                    return;
                }
            }
            for piece in &said.pieces {
                // A client that has heard enough may be gone.
                let _ = backend.write_all(piece).await;
                // Time for it to read this piece alone.
                for _ in 0..4 {
                    yield_now().await;
                }
            }
            if !said.closes {
                // Until the other side closes.
                let _ = backend.read_buf(&mut request).await;
            }
        });
        stream
    }

    fn request<B>(&self, body: B) -> Request<B> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = http::Uri::from_static("/a?b=c");
        request.headers_mut().insert(header::HOST, HeaderValue::from_static("h"));
        request
    }

    /// To [`Connection`].
    pub async fn ours(&self) -> Understood {
        let mut connection = Connection::new(self.connect().await, 64 * 1024);
        let Some(Ok(answer)) = connection.ask(&self.request(()), PATIENCE).await else { return Understood::Nothing };
        let rest = Rest::of(|cx| connection.poll_body(cx)).await;
        let is_idle = rest.is_whole && self.is_open().await && connection.is_idle();
        rest.behind(&answer, is_idle)
    }

    /// To hyper's client.
    pub async fn hypers(&self) -> Understood {
        let (mut sender, connection) =
            hyper::client::conn::http1::Builder::new().max_buf_size(64 * 1024).handshake(TokioIo::new(self.connect().await)).await.unwrap();
        spawn_local(connection);
        let asked = timeout(PATIENCE, sender.send_request(self.request(String::new()))).await;
        let Ok(Ok(mut answer)) = asked else { return Understood::Nothing };
        let rest = Rest::of(|cx| Pin::new(answer.body_mut()).poll_frame(cx)).await;
        let is_idle = rest.is_whole && self.is_open().await && sender.is_ready();
        rest.behind(&answer, is_idle)
    }

    /// Whether the backend leaves the connection as it is, when what it sent behind its answer has come.
    async fn is_open(&self) -> bool {
        if !self.closes {
            sleep(Duration::from_millis(2)).await;
        }
        !self.closes
    }
}

/// What follows an answer's head.
struct Rest {
    body: Vec<u8>,
    trailers: Option<Vec<(String, Vec<u8>)>>,
    is_whole: bool,
}

impl Rest {
    /// All that comes before the end, an error, or the end of patience.
    async fn of<E>(mut poll: impl FnMut(&mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, E>>>) -> Self {
        let mut rest = Self { body: Vec::new(), trailers: None, is_whole: false };
        let all = async {
            while let Some(frame) = poll_fn(&mut poll).await {
                let Ok(frame) = frame else { return false };
                match frame.into_data() {
                    Ok(data) => rest.body.extend_from_slice(&data),
                    Err(frame) => rest.trailers = frame.trailers_ref().map(listed),
                }
            }
            true
        };
        let is_whole = timeout(PATIENCE, all).await.unwrap_or(false);
        Self { is_whole, ..rest }
    }

    fn behind<B>(self, answer: &Response<B>, is_idle: bool) -> Understood {
        let Self { body, trailers, is_whole } = self;
        Understood::Answer { status: answer.status().as_u16(), headers: listed(answer.headers()), body, trailers, is_whole, is_idle }
    }
}

fn listed(headers: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    headers.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect()
}
