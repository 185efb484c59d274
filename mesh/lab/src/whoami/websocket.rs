//! WebSocket (RFC 6455), as little as an echo needs: a greeting, then every message as it came.

use std::{io, net::SocketAddr, sync::Arc};

use aws_lc_rs::digest;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    header::{CONNECTION, HeaderValue, UPGRADE},
    upgrade::{self, Upgraded},
};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Running, Server, answer::Answer};

/// What the RFC has every server add to the key.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// A larger frame ends the connection.
const LARGEST: u64 = 1 << 20;
const TEXT: u8 = 0x1;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;
const GOING_AWAY: [u8; 2] = 1001u16.to_be_bytes();

/// The answer that opens a WebSocket, if the request asks for one.
pub(super) fn accept(
    request: &mut Request<Incoming>,
    remote: SocketAddr,
    local: SocketAddr,
    server: &Arc<Server>,
    running: Running,
) -> Option<Response<Answer>> {
    let wanted = request.headers().get(UPGRADE)?.as_bytes().eq_ignore_ascii_case(b"websocket");
    let key = request.headers().get("sec-websocket-key").filter(|_| wanted)?;
    let accepted = accept_for(key.as_bytes());
    let mut response = Response::new(Answer::Whole(None));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
    response.headers_mut().insert("sec-websocket-accept", HeaderValue::from_str(&accepted).ok()?);
    let greeting = server.identity.greeting(remote, local);
    let (upgraded, server) = (upgrade::on(request), Arc::clone(server));
    tokio::spawn(async move {
        // Errors are the caller's: it went away.
        if let Ok(stream) = upgraded.await {
            let _ = echo(TokioIo::new(stream), &greeting, &server, running).await;
        }
    });
    Some(response)
}

fn accept_for(key: &[u8]) -> String {
    let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(key);
    context.update(GUID.as_bytes());
    STANDARD.encode(context.finish())
}

async fn echo(mut stream: TokioIo<Upgraded>, greeting: &str, server: &Server, mut running: Running) -> io::Result<()> {
    server.think().await;
    send(&mut stream, TEXT, greeting.as_bytes()).await?;
    loop {
        let received = tokio::select! {
            received = receive(&mut stream) => received?,
            () = running.stopped() => {
                send(&mut stream, CLOSE, &GOING_AWAY).await?;
                return stream.shutdown().await;
            }
        };
        server.think().await;
        match received {
            (CLOSE, reason) => {
                send(&mut stream, CLOSE, &reason).await?;
                return stream.shutdown().await;
            }
            (PING, content) => send(&mut stream, PONG, &content).await?,
            (PONG, _) => {}
            (kind, content) => send(&mut stream, kind, &content).await?,
        }
    }
}

/// One frame: what it is, and what is in it, unmasked.
async fn receive(stream: &mut TokioIo<Upgraded>) -> io::Result<(u8, Vec<u8>)> {
    let [first, second] = [stream.read_u8().await?, stream.read_u8().await?];
    let length = match second & 0x7f {
        126 => u64::from(stream.read_u16().await?),
        127 => stream.read_u64().await?,
        short => u64::from(short),
    };
    if second & 0x80 == 0 || first & 0x80 == 0 || length > LARGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not masked, in pieces, or too large"));
    }
    let mask = stream.read_u32().await?.to_be_bytes();
    let mut content = vec![0; usize::try_from(length).unwrap_or_default()];
    stream.read_exact(&mut content).await?;
    content.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    Ok((first & 0x0f, content))
}

async fn send(stream: &mut TokioIo<Upgraded>, kind: u8, content: &[u8]) -> io::Result<()> {
    let mut frame = vec![0x80 | kind];
    match content.len() {
        // The length is below each limit in its own arm.
        length @ 0..126 => frame.push(length as u8),
        length @ 126..=0xffff => {
            frame.push(126);
            frame.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            frame.push(127);
            frame.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(content);
    stream.write_all(&frame).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_answered_as_in_the_rfc() {
        assert_eq!(accept_for(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
