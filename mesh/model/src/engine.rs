//! What follows from the release of a node's engine.

use serde::{Deserialize, Serialize};

/// The first release whose published ports are ordinary port mappings (moby 53118).
const PORT_MAPPINGS_SINCE: (u32, u32) = (29, 8);

/// How an engine leads published ports from its node's own addresses to the ingress sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostLayout {
    /// Up to 29.7: chains `DOCKER-INGRESS` for IPv4, and a listener on `[::]` that never accepts (moby 53091).
    IngressChains,
    /// From 29.8 on: port mappings of the sandbox. Where it has no IPv6, Docker's own proxy takes IPv6 to IPv4.
    PortMappings,
}

impl HostLayout {
    /// By the release as engines tell it, such as `29.7.3`, `20.10.24+dfsg1` or `25.0.9m1`; `None` for builds without a number.
    pub fn of_release(release: &str) -> Option<Self> {
        let mut parts = release.split('.').map(|part| part.split(['-', '+', '~']).next().unwrap_or_default().parse::<u32>());
        let number = (parts.next()?.ok()?, parts.next()?.ok()?);
        Some(if number < PORT_MAPPINGS_SINCE { Self::IngressChains } else { Self::PortMappings })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_told_by_number() {
        for old in ["20.10.24+dfsg1", "25.0.9m1", "28.0.0-rc.1", "29.7.3", "29.7"] {
            assert_eq!(HostLayout::of_release(old), Some(HostLayout::IngressChains), "{old}");
        }
        for new in ["29.8.0", "29.8.0-rc.1", "29.10.1", "30.0.0~1", "29.8-dev"] {
            assert_eq!(HostLayout::of_release(new), Some(HostLayout::PortMappings), "{new}");
        }
        for unknown in ["", "dev", "library-import", "29", "v29.8", "-1.2"] {
            assert_eq!(HostLayout::of_release(unknown), None, "{unknown}");
        }
    }
}
