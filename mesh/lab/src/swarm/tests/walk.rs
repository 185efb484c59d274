use swarmesh_model::{Availability, PublishMode};

use super::{Lab, SECOND, port, spec};
use crate::{
    stack::{FailureAction, Mode, ServiceSpec, UpdateConfig, UpdateOrder},
    swarm::{Observed, UpdateOptions},
};

/// Numbers that are the same in every run (Knuth's MMIX generator).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

fn random_spec(dice: &mut Dice, name: &str) -> ServiceSpec {
    let order = if dice.roll(2) == 0 { UpdateOrder::StartFirst } else { UpdateOrder::StopFirst };
    let failure_action = [FailureAction::Continue, FailureAction::Rollback][dice.roll(2) as usize];
    let update =
        UpdateConfig { order, parallelism: dice.roll(3), delay: SECOND * dice.roll(3) as u32, failure_action, ..UpdateConfig::default() };
    let mut spec = ServiceSpec { update, image: format!("image-{}", dice.roll(4)), ..spec(name, dice.roll(6)) };
    if name == "global" {
        spec.mode = Mode::Global;
    } else if dice.roll(2) == 0 {
        spec.ports = vec![port(80, None, PublishMode::Ingress)];
    }
    spec
}

/// Whatever happens in whatever order: every state on the way is sound, and the swarm comes to rest as it was asked to be.
#[test]
fn random_histories_end_well() {
    for seed in 0..20 {
        let mut dice = Dice(seed);
        let mut lab = Lab::new(4);
        for _ in 0..40 {
            let name = ["a", "b", "global"][dice.roll(3) as usize];
            let node = format!("n{}", 1 + dice.roll(4));
            let tasks: Vec<_> = lab.swarm.snapshot().tasks.keys().cloned().collect();
            let task = tasks.get(dice.roll(tasks.len().max(1) as u64) as usize);
            match (dice.roll(12), task) {
                (0..=2, _) => {
                    let spec = random_spec(&mut dice, name);
                    let _ = if lab.swarm.service_id(name).is_some() {
                        lab.swarm.update_service(spec).map(|_| ())
                    } else {
                        lab.swarm.create_service(spec).map(|_| ())
                    };
                }
                (3, _) => drop(lab.swarm.scale(name, dice.roll(7))),
                (4, _) => drop(lab.swarm.update(name, UpdateOptions::default())),
                (5, _) if dice.roll(3) == 0 => drop(lab.swarm.remove_service(name)),
                (6, _) => lab.swarm.node_down(&node).unwrap(),
                (7, _) => lab.swarm.node_up(&node).unwrap(),
                (8, _) => lab.swarm.set_availability(&node, [Availability::Active, Availability::Drain][dice.roll(2) as usize]).unwrap(),
                (9, Some(task)) => lab.swarm.observe(task, Observed::Exited(dice.roll(2) as i32)),
                (10, Some(task)) => lab.swarm.observe(task, Observed::Unhealthy),
                (11, Some(task)) => lab.swarm.kill_task(task.as_str()).unwrap(),
                _ => lab.broken_image = (dice.roll(2) == 0).then(|| "image-2".to_owned()),
            }
            lab.slow_stop = dice.roll(2) == 0;
            for _ in 0..dice.roll(4) {
                lab.step();
            }
            if dice.roll(3) == 0 {
                for task in std::mem::take(&mut lab.stopping) {
                    lab.swarm.observe(&task, Observed::Exited(143));
                }
            }
            lab.after(SECOND * dice.roll(8) as u32);
        }
        lab.broken_image = None;
        lab.slow_stop = false;
        for number in 1..=4 {
            lab.swarm.node_up(&format!("n{number}")).unwrap();
            lab.swarm.set_availability(&format!("n{number}"), Availability::Active).unwrap();
        }
        for task in std::mem::take(&mut lab.stopping) {
            lab.swarm.observe(&task, Observed::Exited(143));
        }
        lab.after(SECOND * 600);
        // A rollback that failed while images were broken stays paused, with all that it could keep.
        let paused = lab.swarm.problems().iter().any(|p| p.message.starts_with("paused"));
        assert!(lab.swarm.is_settled(), "seed {seed}: {:?} {:?}", lab.swarm.services(), lab.swarm.problems());
        assert!(lab.swarm.problems().is_empty() || paused, "seed {seed}: {:?}", lab.swarm.problems());
        lab.swarm.services().iter().for_each(|s| lab.swarm.remove_service(&s.name).unwrap());
        lab.settle();
        let snapshot = lab.swarm.snapshot();
        assert_eq!((snapshot.services.len(), snapshot.tasks.len(), lab.swarm.node_endpoints().len()), (0, 0, 4), "seed {seed}");
        lab.swarm.remove_network("net").unwrap();
    }
}
