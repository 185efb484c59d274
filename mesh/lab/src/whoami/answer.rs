//! Bodies of HTTP answers: whole, large, or slow.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use hyper::body::{Body, Bytes, Frame, SizeHint};
use tokio::time::{Interval, MissedTickBehavior};

static FILL: [u8; 16 * 1024] = [b'x'; 16 * 1024];

#[derive(Debug)]
pub(super) enum Answer {
    Whole(Option<Bytes>),
    /// This many bytes `x`.
    Fill(u64),
    /// This many more lines, one at each tick.
    Drip {
        lines: u64,
        sent: u64,
        every: Interval,
    },
}

impl Answer {
    pub(super) fn text(text: impl Into<Bytes>) -> Self {
        Self::Whole(Some(text.into()))
    }

    pub(super) fn drip(lines: u64, every: Duration) -> Self {
        let mut every = tokio::time::interval(every.max(Duration::from_millis(1)));
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self::Drip { lines, sent: 0, every }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Self::Fill(0) => Poll::Ready(None),
            Self::Fill(left) => {
                let count = usize::try_from(*left).unwrap_or(usize::MAX).min(FILL.len());
                *left -= count as u64;
                Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&FILL[..count])))))
            }
            Self::Drip { lines, sent, .. } if sent == lines => Poll::Ready(None),
            Self::Drip { sent, every, .. } => every.poll_tick(cx).map(|_| {
                *sent += 1;
                Some(Ok(Frame::data(Bytes::from(format!("{sent}\n")))))
            }),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Fill(left) => SizeHint::with_exact(*left),
            Self::Drip { .. } => SizeHint::default(),
        }
    }
}
