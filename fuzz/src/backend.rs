//! A backend's answer: what is understood does not depend on how it came, and is what hyper's client understands.

use http::Method;
use swarmesh_proxy::answers_fuzz::Said;
use tokio::{runtime::Runtime, task::LocalSet};

/// What was asked for, and two places where the answer is cut.
const HOW: usize = 3;

pub fn check(input: &[u8]) {
    thread_local!(static RUNTIME: Runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime"));
    let Some((&[asked, one, other], bytes)) = input.split_first_chunk::<HOW>() else { return };
    let method = if asked % 4 == 0 { Method::HEAD } else { Method::GET };
    let mut places = [one, other].map(|place| usize::from(place).min(bytes.len()));
    places.sort_unstable();
    let pieces = [&bytes[..places[0]], &bytes[places[0]..places[1]], &bytes[places[1]..]];
    let pieces = pieces.into_iter().filter(|piece| !piece.is_empty()).map(<[u8]>::to_vec).collect();
    // One that stays open would be waited for.
    let cut = Said { method: method.clone(), pieces, closes: true };
    let whole = Said { method, pieces: vec![bytes.to_vec()], closes: true };
    RUNTIME.with(|runtime| {
        LocalSet::new().block_on(runtime, async {
            let ours = whole.ours().await;
            assert_eq!(ours, whole.hypers().await, "ours, and hyper's");
            assert_eq!(ours, cut.ours().await, "whole, and in pieces");
        });
    });
}
