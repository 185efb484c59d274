use swarmesh_kernel::fake::{Call, FakeKernel, FakeView};

use super::*;

const DIR: &str = "/run/docker/netns";
const NETWORK: &str = "tv28rmziizxxyvd7qktq2kwno";

fn network() -> NetworkId {
    NetworkId::from(NETWORK)
}

fn address(last: u8) -> IpAddr {
    [10, 0, 1, last].into()
}

struct World {
    kernel: FakeKernel,
    overlays: Overlays,
    now: Instant,
}

impl World {
    fn new() -> Self {
        let kernel = FakeKernel::new();
        let overlays = Overlays::new(Arc::new(kernel.clone()), DIR.into()).unwrap();
        Self { kernel, overlays, now: Instant::now() }
    }

    fn namespace(&self, name: &str) -> FakeView {
        let view = self.kernel.add_namespace(format!("{DIR}/{name}"));
        view.set_overlay(true);
        for last in 3..6 {
            view.set_peer(address(last), true, true);
        }
        view
    }

    /// Everything that is told within this time.
    fn wait(&mut self, time: Duration) -> Vec<(u8, bool)> {
        let end = self.now + time;
        let mut told = Vec::new();
        loop {
            self.overlays.check_events(self.now);
            let (changes, due) = self.overlays.run_due(self.now);
            told.extend(changes.into_iter().map(|reach| {
                assert_eq!(reach.network, network());
                let IpAddr::V4(v4) = reach.address else { panic!("{reach:?}") };
                (v4.octets()[3], reach.reachable)
            }));
            self.now = match due {
                Some(due) if due <= end => due,
                _ => {
                    self.now = end;
                    return told;
                }
            };
        }
    }

    fn second(&mut self) -> Vec<(u8, bool)> {
        self.wait(Duration::from_secs(1))
    }

    fn want(&mut self, networks: &[&str]) {
        self.overlays.want(networks.iter().map(|id| NetworkId::from(*id)).collect(), self.now);
    }
}

#[test]
fn a_way_that_goes_is_told_once_and_again_when_it_is_back() {
    let mut world = World::new();
    let view = world.namespace("1-tv28rmziiz");
    world.namespace("1-aaaaaaaaaa");
    world.want(&[NETWORK]);
    assert_eq!(world.second(), []);
    view.set_peer(address(3), false, true);
    view.set_peer(address(5), false, true);
    assert_eq!(world.second(), [(3, false), (5, false)]);
    assert_eq!(world.second(), []);
    view.set_peer(address(3), true, true);
    view.set_peer(address(7), true, true);
    assert_eq!(world.second(), [(3, true)]);
    // Back before anybody was told.
    view.set_peer(address(4), false, true);
    view.set_peer(address(4), true, true);
    assert_eq!(world.second(), []);
    // Nobody here is in it any more.
    world.want(&[]);
    assert_eq!(world.second(), [(5, true)]);
    view.set_peer(address(4), false, true);
    assert_eq!(world.second(), []);
}

#[test]
fn an_overlay_that_is_taken_down_loses_nothing() {
    let mut world = World::new();
    let view = world.namespace("1-tv28rmziiz");
    world.want(&[NETWORK]);
    world.second();
    view.set_peer(address(3), false, true);
    assert_eq!(world.second(), [(3, false)]);
    view.set_peer(address(4), false, true);
    view.set_overlay(false);
    assert_eq!(world.second(), [(3, true)], "the fourth was never lost");
    // The next one has another number, or the same.
    world.kernel.remove_namespace(format!("{DIR}/1-tv28rmziiz"));
    let view = world.namespace("2-tv28rmziiz");
    world.second();
    view.set_peer(address(4), false, true);
    assert_eq!(world.second(), [(4, false)]);
    let view = world.namespace("2-tv28rmziiz");
    world.overlays.audit(world.now);
    assert_eq!(world.second(), [(4, true)]);
    view.set_peer(address(5), false, true);
    assert_eq!(world.second(), [(5, false)]);
}

#[test]
fn an_overlay_that_is_not_there_yet_is_looked_for_again() {
    let mut world = World::new();
    world.want(&[NETWORK]);
    world.wait(Duration::from_millis(200));
    // A file without an interface yet, and then one that cannot be listened to.
    let view = world.kernel.add_namespace(format!("{DIR}/10-tv28rmzii"));
    world.wait(Duration::from_millis(200));
    view.set_overlay(true);
    view.set_peer(address(3), true, true);
    view.fail_next(Call::OpenNeighbours, 12);
    world.second();
    view.set_peer(address(3), false, true);
    assert_eq!(world.second(), [(3, false)]);
    // It is not looked for forever, but whenever everything is looked at.
    world.want(&[NETWORK, "another"]);
    world.wait(Duration::from_secs(60));
    assert_eq!(world.overlays.run_due(world.now).1, None);
    world.kernel.add_namespace(format!("{DIR}/1-another")).set_overlay(true);
    world.overlays.audit(world.now);
    assert_eq!(world.overlays.watched.len(), 1, "no name of Docker's");
}

#[test]
fn what_was_missed_is_made_up_for() {
    let mut world = World::new();
    let view = world.namespace("1-tv28rmziiz");
    world.want(&[NETWORK]);
    world.second();
    view.set_peer(address(3), false, true);
    view.set_peer(address(4), false, true);
    assert_eq!(world.second(), [(3, false), (4, false)]);
    view.set_peer(address(3), true, false);
    assert_eq!(world.second(), []);
    world.overlays.audit(world.now);
    assert_eq!(world.second(), [(3, true)]);
    view.set_peer(address(4), true, false);
    view.lose_events();
    view.set_peer(address(3), false, true);
    let told = BTreeSet::from_iter(world.second());
    assert_eq!(told, BTreeSet::from([(3, false), (4, true)]));
    // That a way went unnoticed, too; one that was never there is none.
    view.set_peer(address(5), false, false);
    view.set_peer(address(9), true, false);
    view.set_peer(address(9), false, true);
    assert_eq!(world.second(), []);
    world.overlays.audit(world.now);
    assert_eq!(world.second(), [(5, false)]);
}
