//! The keys of the format, and what a misspelt one was probably meant to be.

pub(super) const TOP: &[&str] = &["version", "services", "networks"];
pub(super) const TOP_IGNORED: &[&str] = &["name", "volumes", "secrets", "configs"];

pub(super) const SERVICE: &[&str] = &[
    "image",
    "command",
    "entrypoint",
    "hostname",
    "dns",
    "dns_opt",
    "dns_search",
    "environment",
    "networks",
    "network_mode",
    "ports",
    "healthcheck",
    "stop_grace_period",
    "stop_signal",
    "deploy",
    "labels",
];
/// Accepted, because a stack file that works elsewhere has to work here; none of them is about networking.
pub(super) const SERVICE_IGNORED: &[&str] = &[
    "annotations",
    "attach",
    "blkio_config",
    "build",
    "cap_add",
    "cap_drop",
    "cgroup",
    "cgroup_parent",
    "cgroupns_mode",
    "configs",
    "container_name",
    "cpu_count",
    "cpu_percent",
    "cpu_period",
    "cpu_quota",
    "cpu_rt_period",
    "cpu_rt_runtime",
    "cpu_shares",
    "cpus",
    "cpuset",
    "credential_spec",
    "depends_on",
    "device_cgroup_rules",
    "devices",
    "domainname",
    "env_file",
    "expose",
    "extends",
    "external_links",
    "extra_hosts",
    "group_add",
    "init",
    "ipc",
    "isolation",
    "links",
    "logging",
    "mac_address",
    "mem_limit",
    "mem_reservation",
    "mem_swappiness",
    "memswap_limit",
    "oom_kill_disable",
    "oom_score_adj",
    "pid",
    "pids_limit",
    "platform",
    "privileged",
    "profiles",
    "pull_policy",
    "read_only",
    "restart",
    "runtime",
    "scale",
    "secrets",
    "security_opt",
    "shm_size",
    "stdin_open",
    "storage_opt",
    "sysctls",
    "tmpfs",
    "tty",
    "ulimits",
    "user",
    "userns_mode",
    "uts",
    "volume_driver",
    "volumes",
    "volumes_from",
    "working_dir",
];

pub(super) const SERVICE_NETWORK: &[&str] = &["aliases", "ipv4_address", "ipv6_address"];
pub(super) const SERVICE_NETWORK_IGNORED: &[&str] = &["link_local_ips", "mac_address", "priority", "gw_priority", "driver_opts"];

pub(super) const PORT: &[&str] = &["target", "published", "protocol", "mode", "name", "host_ip"];
pub(super) const PORT_IGNORED: &[&str] = &["app_protocol"];

pub(super) const HEALTHCHECK: &[&str] = &["test", "interval", "timeout", "retries", "start_period", "disable"];
pub(super) const HEALTHCHECK_IGNORED: &[&str] = &["start_interval"];

pub(super) const DEPLOY: &[&str] =
    &["mode", "replicas", "endpoint_mode", "labels", "update_config", "rollback_config", "restart_policy", "placement"];
pub(super) const DEPLOY_IGNORED: &[&str] = &["resources"];
pub(super) const UPDATE: &[&str] = &["parallelism", "delay", "order", "failure_action", "monitor"];
pub(super) const UPDATE_IGNORED: &[&str] = &["max_failure_ratio"];
pub(super) const RESTART: &[&str] = &["condition", "delay", "max_attempts"];
pub(super) const RESTART_IGNORED: &[&str] = &["window"];
pub(super) const PLACEMENT: &[&str] = &["constraints", "max_replicas_per_node"];
pub(super) const PLACEMENT_IGNORED: &[&str] = &["preferences"];

pub(super) const NETWORK: &[&str] =
    &["name", "driver", "driver_opts", "attachable", "internal", "enable_ipv6", "ipam", "external", "labels"];
pub(super) const NETWORK_IGNORED: &[&str] = &["enable_ipv4"];
pub(super) const IPAM: &[&str] = &["config"];
pub(super) const IPAM_IGNORED: &[&str] = &["driver", "options"];
pub(super) const SUBNET: &[&str] = &["subnet", "gateway"];
pub(super) const SUBNET_IGNORED: &[&str] = &["ip_range", "aux_addresses"];

/// The candidate that is at most two slips away from `word`, if there is one.
pub(super) fn closest<'a>(word: &str, candidates: impl Iterator<Item = &'a &'a str>) -> Option<&'a str> {
    const MOST_SLIPS: usize = 2;
    if word.len() > 64 {
        return None;
    }
    let near = candidates.map(|c| (slips(word, c), *c)).min()?;
    // Two slips make any short word out of any other.
    (near.0 <= MOST_SLIPS.min(word.chars().count() / 2)).then_some(near.1)
}

/// Levenshtein distance, without regard to case.
fn slips(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.to_lowercase().chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, b) in row.iter_mut().skip(1).zip(&other) {
            let above = *cell;
            *cell = (diagonal + usize::from(a != *b)).min(above + 1).min(left + 1);
            diagonal = above;
            left = *cell;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_counted() {
        assert_eq!((slips("ports", "port"), slips("prots", "ports"), slips("a", "abc"), slips("", "ab")), (1, 2, 2, 2));
        assert_eq!(closest("replicass", DEPLOY.iter()), Some("replicas"));
        assert_eq!(closest("prots", SERVICE.iter()), Some("ports"));
        assert_eq!(closest("Image", SERVICE.iter()), Some("image"));
        assert_eq!(closest("zebra", SERVICE.iter()), None);
    }
}
