//! Which plane this node gets, and why not the others.

use std::{collections::BTreeSet, sync::Arc, thread};

use nix::sched::{CloneFlags, unshare};
use swarmesh_dataplane::{Balancing, try_ipvs};
use swarmesh_kernel::{KernelError, LinuxKernel};
use swarmesh_plan::Scheduler;

use crate::config::PlaneChoice;

/// The plane that runs, and why the others do not.
#[derive(Clone, Debug)]
pub struct Chosen {
    pub balancing: Balancing,
    pub others: Vec<(PlaneChoice, String)>,
}

/// Why there is no plane.
#[derive(Debug, thiserror::Error)]
pub enum ChoiceError {
    #[error("plane {0} is not in this version; use --plane ipvs, nft, or auto")]
    Absent(PlaneChoice),
    #[error("--plane {plane} cannot run here: {reason}. `--plane nft` needs none of it")]
    Refused { plane: PlaneChoice, reason: KernelError },
}

const NOT_ASKED: &str = "another one was asked for";

/// Tries what has to be tried. Changes nothing on the node, but that modules may get loaded.
pub fn choose(choice: PlaneChoice) -> Result<Chosen, ChoiceError> {
    let ebpf = (PlaneChoice::Ebpf, "not in this version".to_owned());
    let nft = |why: String| Chosen { balancing: Balancing::Nft, others: vec![ebpf.clone(), (PlaneChoice::Ipvs, why)] };
    let ipvs = |schedulers, why: &str| Chosen {
        balancing: Balancing::Ipvs { schedulers: Arc::new(schedulers) },
        others: vec![ebpf.clone(), (PlaneChoice::Nft, why.to_owned())],
    };
    match choice {
        PlaneChoice::Ebpf => Err(ChoiceError::Absent(choice)),
        PlaneChoice::Nft => Ok(nft(NOT_ASKED.to_owned())),
        PlaneChoice::Ipvs => match try_plane_ipvs() {
            Ok(schedulers) => Ok(ipvs(schedulers, NOT_ASKED)),
            Err(reason) => Err(ChoiceError::Refused { plane: choice, reason }),
        },
        PlaneChoice::Auto => Ok(match try_plane_ipvs() {
            Ok(schedulers) => ipvs(schedulers, "it would do, and ipvs comes first"),
            Err(reason) => nft(reason.to_string()),
        }),
    }
}

/// Tries all that virtual servers need, where nobody sees it.
pub(crate) fn try_plane_ipvs() -> Result<BTreeSet<Scheduler>, KernelError> {
    in_scratch(|| try_ipvs(&LinuxKernel))
}

/// Runs `work` in a namespace of its own, which goes when it is done.
fn in_scratch<T: Send + 'static>(work: impl FnOnce() -> Result<T, KernelError> + Send + 'static) -> Result<T, KernelError> {
    let action = "try it in a network namespace";
    let thread = thread::Builder::new().name("scratch".to_owned()).spawn(|| {
        // Only this thread moves, and it ends here.
        unshare(CloneFlags::CLONE_NEWNET)
            .map_err(|errno| KernelError::from_errno("make a network namespace to try it in", errno as i32))?;
        work()
    });
    match thread.map(thread::JoinHandle::join) {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) => Err(KernelError::from_io(action, std::io::Error::other("the thread that tries it failed"))),
        Err(error) => Err(KernelError::from_io(action, error)),
    }
}
