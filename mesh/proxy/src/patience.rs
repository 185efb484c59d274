//! A pause, and its limit.

use std::{
    future::Future as _,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};

/// Says when nothing has come for too long. To set and to end a timer costs more than a short pause is worth, so one that is set
/// stays, and a pause that begins later finds out only when it rings that there is time left: then it is set again. It never
/// rings too early, and no later than a timer of its own would.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    /// Of the pause that is, if there is one.
    until: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    /// Polled while there is nothing to read: ready when there was nothing for too long.
    pub(crate) fn poll_pause(&mut self, limit: Duration, cx: &mut Context<'_>) -> Poll<()> {
        // Longer than a year is forever.
        const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);
        let until = *self.until.get_or_insert_with(|| Instant::now() + limit.min(FOREVER));
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if timer.deadline() > until {
            timer.as_mut().reset(until);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            if timer.deadline() >= until {
                return Poll::Ready(());
            }
            timer.as_mut().reset(until);
        }
    }

    /// Something came.
    pub(crate) fn moves(&mut self) {
        self.until = None;
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_pause_has_its_whole_limit_and_no_more() {
        let (begun, second) = (Instant::now(), Duration::from_secs(1));
        let mut patience = Patience::default();
        let pending = |patience: &mut Patience, limit| {
            let poll = patience.poll_pause(limit, &mut Context::from_waker(std::task::Waker::noop()));
            assert!(poll.is_pending());
        };
        pending(&mut patience, 10 * second);
        tokio::time::advance(7 * second).await;
        patience.moves();
        poll_fn(|cx| patience.poll_pause(10 * second, cx)).await;
        assert_eq!(begun.elapsed().as_secs(), 17, "the timer from before is at 10");
        patience.moves();
        pending(&mut patience, 60 * second);
        patience.moves();
        poll_fn(|cx| patience.poll_pause(second, cx)).await;
        assert_eq!(begun.elapsed().as_secs(), 18, "the timer from before is at 77");
        patience.moves();
        pending(&mut patience, Duration::MAX);
    }
}
