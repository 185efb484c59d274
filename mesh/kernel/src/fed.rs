//! Events that a test's namespace makes up, behind a descriptor that polls as a socket's does.

use std::{
    collections::VecDeque,
    fmt,
    io::{Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::{Arc, Mutex, PoisonError},
};

use crate::KernelError;

/// The end of who listens. The stream carries one byte per event, only to wake whoever polls it.
pub(crate) struct FedEvents<E> {
    queue: Arc<Mutex<VecDeque<E>>>,
    reader: UnixStream,
}

impl<E> fmt::Debug for FedEvents<E> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("FedEvents").finish_non_exhaustive()
    }
}

impl<E> FedEvents<E> {
    pub(crate) fn new() -> Result<(Self, Feed<E>), KernelError> {
        let pair = || {
            let (reader, writer) = UnixStream::pair()?;
            reader.set_nonblocking(true)?;
            writer.set_nonblocking(true)?;
            Ok((reader, writer))
        };
        let (reader, writer) = pair().map_err(|source| KernelError::from_io("make a monitor", source))?;
        let queue = Arc::new(Mutex::new(VecDeque::new()));
        Ok((Self { queue: Arc::clone(&queue), reader }, Feed { queue, writer }))
    }

    pub(crate) fn read(&mut self) -> Vec<E> {
        let mut wakeups = [0; 256];
        while matches!(self.reader.read(&mut wakeups), Ok(count) if count > 0) {}
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect()
    }
}

impl<E> AsFd for FedEvents<E> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

/// The other end.
pub(crate) struct Feed<E> {
    queue: Arc<Mutex<VecDeque<E>>>,
    writer: UnixStream,
}

impl<E> fmt::Debug for Feed<E> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Feed").finish_non_exhaustive()
    }
}

impl<E> Feed<E> {
    /// False once nobody listens.
    pub(crate) fn push(&mut self, event: E) -> bool {
        if Arc::strong_count(&self.queue) == 1 {
            return false;
        }
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(event);
        // A full stream wakes the reader just as well.
        let _ = self.writer.write(&[0]);
        true
    }
}
