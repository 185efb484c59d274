//! How long tests wait, on machines of every speed.

use std::{sync::LazyLock, time::Duration};

/// Names the factor: an emulated machine is some ten times slower than the one that emulates it.
const VARIABLE: &str = "SWARMESH_TEST_PATIENCE";

static FACTOR: LazyLock<f64> = LazyLock::new(|| {
    let Ok(text) = std::env::var(VARIABLE) else { return 1.0 };
    let factor = text.parse().unwrap_or(f64::NAN);
    assert!((1.0..=1000.0).contains(&factor), "{VARIABLE}={text}: not a number from 1 to 1000");
    factor
});

/// What is asked of a machine within a second: a slow one cannot do as much.
pub fn rate(per_second: u32) -> f64 {
    f64::from(per_second) / *FACTOR
}

/// What is too late: the time of an ordinary machine times the factor.
///
/// Not for what a swarm was asked to do (drains, health intervals, affinities): that takes as long on any machine.
pub fn patient(time: Duration) -> Duration {
    time.mul_f64(*FACTOR)
}

/// How long silence lasts until it is believed. An answer comes within milliseconds, of which a slow machine makes tens, and a
/// SYN is sent again after a second on each: so this grows with the factor's root.
pub fn silence(time: Duration) -> Duration {
    time.mul_f64(FACTOR.sqrt())
}
