//! Which data plane the labs' agents use.

use std::{fmt, sync::LazyLock};

const VARIABLE: &str = "SWARMESH_TEST_PLANE";

/// The agents' `--plane`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plane {
    Nft,
    Ipvs,
}

impl fmt::Display for Plane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nft => "nft",
            Self::Ipvs => "ipvs",
        })
    }
}

static PLANE: LazyLock<Plane> = LazyLock::new(|| {
    let Ok(text) = std::env::var(VARIABLE) else { return Plane::Nft };
    let known = [Plane::Nft, Plane::Ipvs].into_iter().find(|plane| plane.to_string() == text);
    assert!(known.is_some(), "{VARIABLE}={text}: nft or ipvs");
    known.unwrap_or(Plane::Nft)
});

/// What `SWARMESH_TEST_PLANE` says; without it, nft.
pub fn plane() -> Plane {
    *PLANE
}

/// A row cannot be asked of this plane. The table's report says so, and says why.
#[derive(Debug, thiserror::Error)]
#[error("left out on {plane}: {why}")]
pub struct LeftOut {
    pub(crate) plane: Plane,
    pub(crate) why: &'static str,
}

/// Begins a row that needs what only kernels with IPVS have; `why` says what.
pub fn ipvs_only(why: &'static str) -> Result<(), LeftOut> {
    if plane() == Plane::Ipvs { Ok(()) } else { Err(LeftOut { plane: plane(), why }) }
}

/// Begins a row about something that only nft has; `why` says what it looks at.
pub fn nft_only(why: &'static str) -> Result<(), LeftOut> {
    if plane() == Plane::Nft { Ok(()) } else { Err(LeftOut { plane: plane(), why }) }
}
