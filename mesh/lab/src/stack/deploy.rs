//! The `deploy` section of a service.

use std::collections::BTreeMap;

use swarmesh_model::EndpointMode;

use super::{
    Constraint, ConstraintKey, FailureAction, MOST_REPLICAS, Mode, Placement, RestartCondition, RestartPolicy, UpdateConfig, UpdateOrder,
    keys,
    tree::shown,
    value::{Read, Value},
};

pub(super) struct Deploy {
    pub(super) mode: Mode,
    pub(super) endpoint_mode: EndpointMode,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) update: UpdateConfig,
    pub(super) rollback: UpdateConfig,
    pub(super) restart: RestartPolicy,
    pub(super) placement: Placement,
}

impl Default for Deploy {
    fn default() -> Self {
        Self {
            mode: Mode::Replicated { replicas: 1 },
            endpoint_mode: EndpointMode::Vip,
            labels: BTreeMap::new(),
            update: UpdateConfig::default(),
            rollback: UpdateConfig::default(),
            restart: RestartPolicy::default(),
            placement: Placement::default(),
        }
    }
}

pub(super) fn deploy(value: &Value<'_>) -> Read<Deploy> {
    let fields = value.fields(keys::DEPLOY, keys::DEPLOY_IGNORED)?;
    let global = fields.read("mode", false, |v| v.choice(&[("replicated", false), ("global", true)]))?;
    let replicas = fields.get("replicas");
    let mode = match (global, &replicas) {
        (true, Some(replicas)) => return Err(replicas.fail("a global service has one task on each node; replicas cannot be given")),
        (true, None) => Mode::Global,
        (false, Some(replicas)) => Mode::Replicated { replicas: replicas.number("a number of replicas", 0, MOST_REPLICAS)? },
        (false, None) => Mode::Replicated { replicas: 1 },
    };
    Ok(Deploy {
        mode,
        endpoint_mode: fields
            .read("endpoint_mode", EndpointMode::Vip, |v| v.choice(&[("vip", EndpointMode::Vip), ("dnsrr", EndpointMode::Dnsrr)]))?,
        labels: fields.read("labels", BTreeMap::new(), Value::labels)?,
        update: fields.read("update_config", UpdateConfig::default(), |v| update(v, true))?,
        rollback: fields.read("rollback_config", UpdateConfig::default(), |v| update(v, false))?,
        restart: fields.read("restart_policy", RestartPolicy::default(), restart)?,
        placement: fields.read("placement", Placement::default(), placement)?,
    })
}

fn update(value: &Value<'_>, may_roll_back: bool) -> Read<UpdateConfig> {
    let fields = value.fields(keys::UPDATE, keys::UPDATE_IGNORED)?;
    let default = UpdateConfig::default();
    let actions: &[_] = &[("pause", FailureAction::Pause), ("continue", FailureAction::Continue), ("rollback", FailureAction::Rollback)];
    // A rollback that fails cannot be rolled back.
    let actions = if may_roll_back { actions } else { &actions[..2] };
    Ok(UpdateConfig {
        parallelism: fields.read("parallelism", default.parallelism, |v| v.number("a number of tasks", 0, MOST_REPLICAS))?,
        delay: fields.read("delay", default.delay, Value::duration)?,
        order: fields.read("order", default.order, |v| {
            v.choice(&[("stop-first", UpdateOrder::StopFirst), ("start-first", UpdateOrder::StartFirst)])
        })?,
        failure_action: fields.read("failure_action", default.failure_action, |v| v.choice(actions))?,
        monitor: fields.read("monitor", default.monitor, Value::duration)?,
    })
}

fn restart(value: &Value<'_>) -> Read<RestartPolicy> {
    let fields = value.fields(keys::RESTART, keys::RESTART_IGNORED)?;
    Ok(RestartPolicy {
        condition: fields.read("condition", RestartCondition::Any, |v| {
            v.choice(&[("none", RestartCondition::None), ("on-failure", RestartCondition::OnFailure), ("any", RestartCondition::Any)])
        })?,
        delay: fields.optional("delay", Value::duration)?,
        max_attempts: fields.optional("max_attempts", |v| v.number("a number of attempts", 0, u64::from(u32::MAX)))?,
    })
}

fn placement(value: &Value<'_>) -> Read<Placement> {
    let fields = value.fields(keys::PLACEMENT, keys::PLACEMENT_IGNORED)?;
    let mut constraints = Vec::new();
    if let Some(list) = fields.get("constraints") {
        for item in list.list()? {
            constraints.extend(constraint(&item.full_text()?, &item).map_err(|m| item.fail(m))?);
        }
    }
    Ok(Placement {
        constraints,
        max_replicas_per_node: fields.optional("max_replicas_per_node", |v| v.number("a number of tasks", 0, MOST_REPLICAS))?,
    })
}

/// `None` for a constraint that every node of the emulator counts as meeting.
fn constraint(text: &str, at: &Value<'_>) -> Result<Option<Constraint>, String> {
    let (key, equal, value) = match (text.split_once("!="), text.split_once("==")) {
        (Some((key, value)), None) => (key.trim(), false, value.trim()),
        (None, Some((key, value))) => (key.trim(), true, value.trim()),
        _ => return Err(format!("{:?} is not a constraint; write it like node.role == manager or node.labels.disk != ssd", shown(text))),
    };
    if value.is_empty() {
        return Err(format!("the constraint {:?} compares with nothing", shown(text)));
    }
    let key = match key {
        "node.id" => ConstraintKey::Id,
        "node.hostname" => ConstraintKey::Hostname,
        "node.role" if !["manager", "worker"].iter().any(|role| role.eq_ignore_ascii_case(value)) => {
            return Err(format!("a node's role is manager or worker, not {:?}", shown(value)));
        }
        "node.role" => ConstraintKey::Role,
        _ => match key.strip_prefix("node.labels.") {
            Some(label) if !label.is_empty() => ConstraintKey::Label(label.to_owned()),
            _ if key.starts_with("node.platform.") || key.starts_with("engine.labels.") => {
                at.note(format!("the constraint on {} is not checked here", shown(key)));
                return Ok(None);
            }
            _ => {
                return Err(format!(
                    "{:?} is nothing to constrain by; use node.id, node.hostname, node.role or node.labels.<name>",
                    shown(key)
                ));
            }
        },
    };
    Ok(Some(Constraint { key, equal, value: value.to_owned() }))
}
