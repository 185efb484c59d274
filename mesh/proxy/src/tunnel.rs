//! Bytes both ways, unlooked at: TLS that passes through, TCP, and what becomes of an upgraded request.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, sleep_until},
};

/// Of a read. A little more than a TLS record.
const BUFFER: usize = 32 << 10;
/// That a worker keeps for the next reads.
const MOST_KEPT: usize = 16;

type Buffer = Box<[u8; BUFFER]>;

thread_local! {
    static KEPT: RefCell<Vec<Buffer>> = const { RefCell::new(Vec::new()) };
}

/// What came of a tunnel.
#[derive(Debug)]
pub struct Tunnelled {
    /// Bytes that the backend took.
    pub to_backend: u64,
    /// Bytes that the client took.
    pub to_client: u64,
    pub end: End,
}

/// Why a tunnel ended.
#[derive(Debug)]
pub enum End {
    /// Both sides had said all they had to.
    Closed,
    /// Nothing came for too long, either way.
    Idle,
    /// The node drains, and the time that was left for it is over.
    Drained,
    /// One side's connection failed.
    Failed(Side, io::Error),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Backend,
}

/// Copies until both sides have closed, one has failed, nothing has moved for `idle`, or `drained` is there. A side that closes can
/// still be answered. While nothing moves, no memory is held for it but the two connections'.
pub async fn tunnel<C, B>(client: &mut C, backend: &mut B, idle: Option<Duration>, drained: impl Future<Output = ()>) -> Tunnelled
where
    C: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut there, mut back) = (Way::new(Side::Client, Side::Backend), Way::new(Side::Backend, Side::Client));
    let mut drained = pin!(drained);
    // Nobody waits for a time that no clock has.
    let idle = idle.filter(|idle| Instant::now().checked_add(*idle).is_some());
    let mut moved_at = Instant::now();
    let mut alarm = pin!(sleep_until(moved_at + idle.unwrap_or_default()));
    let end = poll_fn(|context| {
        let before = (there.moved, back.moved);
        let ways = (there.poll(context, client, backend), back.poll(context, backend, client));
        match ways {
            (Poll::Ready(Err(end)), _) | (_, Poll::Ready(Err(end))) => return Poll::Ready(end),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(End::Closed),
            _ => {}
        }
        if drained.as_mut().poll(context).is_ready() {
            return Poll::Ready(End::Drained);
        }
        let Some(idle) = idle else { return Poll::Pending };
        if before != (there.moved, back.moved) {
            moved_at = Instant::now();
        }
        // The alarm is not set again for each byte, but when it goes off.
        while alarm.as_mut().poll(context).is_ready() {
            if moved_at + idle <= Instant::now() {
                return Poll::Ready(End::Idle);
            }
            alarm.as_mut().reset(moved_at + idle);
        }
        Poll::Pending
    })
    .await;
    Tunnelled { to_backend: there.written, to_client: back.written, end }
}

/// One direction.
struct Way {
    from: Side,
    to: Side,
    state: State,
    /// Read, and not written yet.
    held: Option<Held>,
    /// Written, and perhaps held back by what is written to.
    unflushed: bool,
    written: u64,
    /// Reads and writes that moved something.
    moved: u64,
}

#[derive(Clone, Copy)]
enum State {
    Copying,
    Closing,
    Closed,
}

struct Held {
    buffer: Buffer,
    next: usize,
    end: usize,
}

impl Way {
    fn new(from: Side, to: Side) -> Self {
        Self { from, to, state: State::Copying, held: None, unflushed: false, written: 0, moved: 0 }
    }

    fn poll<R, W>(&mut self, context: &mut Context<'_>, reader: &mut R, writer: &mut W) -> Poll<Result<(), End>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let (from, to) = (self.from, self.to);
        let mut writer = Pin::new(writer);
        loop {
            match self.state {
                State::Copying => {
                    ready!(self.write(context, writer.as_mut())).map_err(|error| End::Failed(to, error))?;
                    match self.read(context, reader) {
                        Poll::Ready(result) => result.map_err(|error| End::Failed(from, error))?,
                        Poll::Pending => {
                            if self.unflushed {
                                ready!(writer.as_mut().poll_flush(context)).map_err(|error| End::Failed(to, error))?;
                                self.unflushed = false;
                            }
                            return Poll::Pending;
                        }
                    }
                }
                State::Closing => {
                    match ready!(writer.as_mut().poll_shutdown(context)) {
                        // It went first.
                        Err(error) if error.kind() != io::ErrorKind::NotConnected => return Poll::Ready(Err(End::Failed(to, error))),
                        _ => self.state = State::Closed,
                    }
                }
                State::Closed => return Poll::Ready(Ok(())),
            }
        }
    }

    /// All that is held.
    fn write<W: AsyncWrite>(&mut self, context: &mut Context<'_>, mut writer: Pin<&mut W>) -> Poll<io::Result<()>> {
        while let Some(held) = &mut self.held {
            let bytes = held.buffer.get(held.next..held.end).unwrap_or_default();
            if bytes.is_empty() {
                if let Some(held) = self.held.take() {
                    keep(held.buffer);
                }
                break;
            }
            let written = ready!(writer.as_mut().poll_write(context, bytes))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            held.next += written;
            self.written += written as u64;
            self.moved += 1;
            self.unflushed = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Nothing is held before, and something after, or the end has come.
    fn read<R: AsyncRead + Unpin>(&mut self, context: &mut Context<'_>, reader: &mut R) -> Poll<io::Result<()>> {
        let mut buffer = buffer();
        let mut into = ReadBuf::new(&mut buffer[..]);
        let result = Pin::new(reader).poll_read(context, &mut into);
        let end = into.filled().len();
        if matches!(result, Poll::Ready(Ok(()))) && end > 0 {
            self.moved += 1;
            self.held = Some(Held { buffer, next: 0, end });
            return result;
        }
        keep(buffer);
        if matches!(result, Poll::Ready(Ok(()))) {
            self.state = State::Closing;
        }
        result
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            keep(held.buffer);
        }
    }
}

/// A worker needs one, and one more for each side that is slower than the other.
fn buffer() -> Buffer {
    let kept = KEPT.try_with(|kept| kept.borrow_mut().pop()).ok().flatten();
    kept.unwrap_or_else(|| Box::new([0; BUFFER]))
}

fn keep(buffer: Buffer) {
    // If the thread is ending, it is freed.
    let _ = KEPT.try_with(|kept| {
        let mut kept = kept.borrow_mut();
        if kept.len() < MOST_KEPT {
            kept.push(buffer);
        }
    });
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        net::{TcpListener, TcpStream},
        sync::oneshot,
        task::JoinHandle,
        time::sleep,
    };

    use super::*;

    const IDLE: Duration = Duration::from_secs(30);

    /// A client's and a backend's own ends of a tunnel that holds this much each way.
    fn open(size: usize, idle: Option<Duration>) -> (DuplexStream, DuplexStream, JoinHandle<Tunnelled>) {
        let ((client, mut near), (backend, mut far)) = (duplex(size), duplex(size));
        let task = tokio::spawn(async move { tunnel(&mut near, &mut far, idle, pending()).await });
        (client, backend, task)
    }

    fn bytes(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at * 31 % 251) as u8).collect()
    }

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (one, other) = tokio::join!(TcpStream::connect(address), listener.accept());
        (one.unwrap(), other.unwrap().0)
    }

    #[tokio::test]
    async fn all_bytes_arrive_both_ways_and_are_counted() {
        for size in [1, 1000, 1 << 20] {
            let (client, backend, task) = open(size, Some(IDLE));
            let length = if size == 1 { 5000 } else { 300_000 };
            let talk = |stream: DuplexStream, says: Vec<u8>| async move {
                let (mut read, mut write) = tokio::io::split(stream);
                let writing = async {
                    write.write_all(&says).await.unwrap();
                    write.shutdown().await.unwrap();
                };
                let mut heard = Vec::new();
                let (_, read) = tokio::join!(writing, read.read_to_end(&mut heard));
                read.unwrap();
                heard
            };
            let (up, down) = (bytes(length), bytes(length / 2));
            let (heard_by_client, heard_by_backend) = tokio::join!(talk(client, up.clone()), talk(backend, down.clone()));
            assert!(heard_by_backend == up && heard_by_client == down, "with room for {size}");
            let tunnelled = task.await.unwrap();
            assert!(matches!(tunnelled.end, End::Closed), "{tunnelled:?}");
            assert_eq!((tunnelled.to_backend, tunnelled.to_client), (length as u64, length as u64 / 2));
        }
    }

    #[tokio::test]
    async fn a_side_that_has_closed_is_still_answered() {
        for client_first in [true, false] {
            let (client, backend, task) = open(64, None);
            let (mut first, mut second) = if client_first { (client, backend) } else { (backend, client) };
            first.write_all(b"question").await.unwrap();
            first.shutdown().await.unwrap();
            let mut question = String::new();
            second.read_to_string(&mut question).await.unwrap();
            assert_eq!(question, "question");
            sleep(Duration::from_millis(20)).await;
            assert!(!task.is_finished());
            second.write_all(b"answer").await.unwrap();
            drop(second);
            let mut answer = String::new();
            first.read_to_string(&mut answer).await.unwrap();
            assert_eq!(answer, "answer");
            assert!(matches!(task.await.unwrap().end, End::Closed));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_tunnel_in_which_nothing_moves_ends_and_one_in_which_something_does_not() {
        let (mut client, mut backend, task) = open(64, Some(IDLE));
        let start = Instant::now();
        for turn in 0..5 {
            sleep(IDLE - Duration::from_secs(1)).await;
            let (says, hears) = if turn % 2 == 0 { (&mut client, &mut backend) } else { (&mut backend, &mut client) };
            says.write_all(b"x").await.unwrap();
            assert_eq!(hears.read_u8().await.unwrap(), b'x');
        }
        let last = Instant::now();
        let tunnelled = task.await.unwrap();
        assert!(matches!(tunnelled.end, End::Idle), "{tunnelled:?}");
        assert_eq!((tunnelled.to_backend, tunnelled.to_client), (3, 2));
        assert_eq!(last - start, (IDLE - Duration::from_secs(1)) * 5);
        assert!(last.elapsed().abs_diff(IDLE) < Duration::from_millis(5), "{:?}", last.elapsed());

        // One that is half closed, and whose other half says nothing.
        let (mut client, _backend, task) = open(64, Some(IDLE));
        client.shutdown().await.unwrap();
        assert!(matches!(task.await.unwrap().end, End::Idle));
        // One that cannot write.
        let (mut client, _backend, task) = open(64, Some(IDLE));
        client.write_all(&[0; 100]).await.unwrap();
        assert!(matches!(task.await.unwrap(), Tunnelled { to_backend: 64, end: End::Idle, .. }));
        // And one that may wait for longer than there is time.
        let (client, backend, task) = open(64, Some(Duration::MAX));
        sleep(Duration::from_secs(1_000_000)).await;
        assert!(!task.is_finished());
        drop((client, backend));
        assert!(matches!(task.await.unwrap().end, End::Closed));
    }

    #[tokio::test]
    async fn a_drained_tunnel_ends_at_once() {
        let ((mut client, mut near), (_backend, mut far)) = (duplex(64), duplex(64));
        let (drain, drained) = oneshot::channel::<()>();
        let drained = async { drop(drained.await) };
        let task = tokio::spawn(async move { tunnel(&mut near, &mut far, None, drained).await });
        client.write_all(b"abc").await.unwrap();
        sleep(Duration::from_millis(20)).await;
        assert!(!task.is_finished());
        drain.send(()).unwrap();
        let tunnelled = task.await.unwrap();
        assert!(matches!(tunnelled, Tunnelled { to_backend: 3, to_client: 0, end: End::Drained }), "{tunnelled:?}");
    }

    #[tokio::test]
    async fn whoever_fails_is_named() {
        for side in [Side::Client, Side::Backend] {
            let ((client, mut near), (backend, mut far)) = (pair().await, pair().await);
            let task = tokio::spawn(async move { tunnel(&mut near, &mut far, None, pending()).await });
            let (fails, mut stays) = if side == Side::Client { (client, backend) } else { (backend, client) };
            // Not a close, but a reset.
            socket2::SockRef::from(&fails).set_linger(Some(Duration::ZERO)).unwrap();
            drop(fails);
            let tunnelled = task.await.unwrap();
            assert!(matches!(&tunnelled.end, End::Failed(who, _) if *who == side), "{tunnelled:?}");
            assert_eq!(stays.read(&mut [0]).await.unwrap(), 0);
        }
    }

    #[tokio::test]
    async fn tunnels_at_rest_hold_no_buffer() {
        let mut tunnels = Vec::new();
        for _ in 0..50 {
            let (mut client, mut backend, task) = open(100_000, Some(IDLE));
            client.write_all(&[1; 50_000]).await.unwrap();
            let mut heard = [0; 50_000];
            backend.read_exact(&mut heard).await.unwrap();
            tunnels.push((client, backend, task));
        }
        sleep(Duration::from_millis(20)).await;
        assert_eq!(KEPT.with(|kept| kept.borrow().len()), 1, "all of them took turns with one");

        // Those that cannot write do, and give it back at their end.
        for (client, _, _) in &mut tunnels {
            client.write_all(&[1; 100_000]).await.unwrap();
        }
        for (client, _, _) in &mut tunnels {
            client.write_all(&[1; 50_000]).await.unwrap();
        }
        for (_, _, task) in tunnels {
            task.abort();
            assert!(task.await.unwrap_err().is_cancelled());
        }
        assert_eq!(KEPT.with(|kept| kept.borrow().len()), MOST_KEPT);
    }
}
