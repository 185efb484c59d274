//! The Docker API's objects, reduced to what is read, and read leniently: any field may be missing or null, and words
//! stay words until [`super::decode`] has looked at them.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

/// Docker writes null where it means empty.
fn lenient<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// `struct` with serde's defaults and `lenient` on every field, in Docker's spelling.
macro_rules! wire {
    ($($(#[$meta:meta])* struct $name:ident { $($json:literal $field:ident: $type:ty),* $(,)? })*) => {
        $(
            $(#[$meta])*
            #[derive(Debug, Default, Deserialize)]
            #[serde(default)]
            pub(super) struct $name {
                $(#[serde(rename = $json, deserialize_with = "lenient")] pub(super) $field: $type),*
            }
        )*
    };
}

wire! {
    struct Info { "Swarm" swarm: SwarmInfo }
    struct SwarmInfo {
        "NodeID" node_id: String,
        "NodeAddr" node_addr: String,
        "LocalNodeState" local_node_state: String,
        "ControlAvailable" control_available: bool,
    }

    struct Network {
        "Id" id: String,
        "Name" name: String,
        "Scope" scope: String,
        "Driver" driver: String,
        "Ingress" ingress: bool,
        "Internal" internal: bool,
        "Attachable" attachable: bool,
        "ConfigOnly" config_only: bool,
        "IPAM" ipam: Ipam,
        "Options" options: BTreeMap<String, Option<String>>,
        "Labels" labels: BTreeMap<String, Option<String>>,
    }
    struct Ipam { "Config" config: Vec<IpamConfig> }
    struct IpamConfig { "Subnet" subnet: String, "Gateway" gateway: String }

    struct Service {
        "ID" id: String,
        "Spec" spec: ServiceSpec,
        "PreviousSpec" previous_spec: ServiceSpec,
        "Endpoint" endpoint: Endpoint,
        "UpdateStatus" update_status: UpdateStatus,
    }
    struct UpdateStatus { "StartedAt" started_at: String }
    struct ServiceSpec {
        "Name" name: String,
        "Labels" labels: BTreeMap<String, Option<String>>,
        "TaskTemplate" task_template: TaskTemplate,
        "Networks" networks: Vec<NetworkTarget>,
        "EndpointSpec" endpoint_spec: EndpointSpec,
    }
    struct TaskTemplate { "Networks" networks: Vec<NetworkTarget> }
    struct NetworkTarget { "Target" target: String, "Aliases" aliases: Vec<String> }
    struct EndpointSpec { "Mode" mode: String, "Ports" ports: Vec<Port> }
    struct Endpoint {
        "Spec" spec: EndpointSpec,
        "Ports" ports: Vec<Port>,
        "VirtualIPs" virtual_ips: Vec<VirtualIp>,
    }
    struct Port {
        "Name" name: String,
        "Protocol" protocol: String,
        "TargetPort" target_port: u32,
        "PublishedPort" published_port: u32,
        "PublishMode" publish_mode: String,
    }
    struct VirtualIp { "NetworkID" network_id: String, "Addr" addr: String }

    struct Task {
        "ID" id: String,
        "CreatedAt" created_at: String,
        "Spec" spec: TaskSpec,
        "ServiceID" service_id: String,
        "Slot" slot: u64,
        "NodeID" node_id: String,
        "Status" status: TaskStatus,
        "DesiredState" desired_state: String,
        "NetworksAttachments" networks_attachments: Vec<Attachment>,
    }
    struct TaskSpec { "ContainerSpec" container_spec: ContainerSpec, "Networks" networks: Vec<NetworkTarget> }
    struct ContainerSpec { "Hostname" hostname: String }
    struct TaskStatus { "State" state: String, "ContainerStatus" container_status: ContainerStatus }
    struct ContainerStatus { "ContainerID" container_id: String }
    struct Attachment { "Network" network: AttachedNetwork, "Addresses" addresses: Vec<String> }
    struct AttachedNetwork { "ID" id: String }

    struct Node {
        "ID" id: String,
        "Spec" spec: NodeSpec,
        "Description" description: NodeDescription,
        "Status" status: NodeStatus,
        "ManagerStatus" manager_status: ManagerStatus,
    }
    struct NodeSpec { "Role" role: String, "Availability" availability: String }
    struct NodeDescription { "Hostname" hostname: String, "Engine" engine: NodeEngine }
    struct NodeEngine { "EngineVersion" engine_version: String }
    struct NodeStatus { "State" state: String, "Addr" addr: String }
    struct ManagerStatus { "Addr" addr: String }

    /// One line of `/containers/json`.
    struct ContainerLine {
        "Id" id: String,
        "Labels" labels: BTreeMap<String, Option<String>>,
        "NetworkSettings" network_settings: NetworkSettings,
    }
    /// `/containers/{id}/json`.
    struct Container {
        "Id" id: String,
        "Name" name: String,
        "ResolvConfPath" resolv_conf_path: String,
        "State" state: ContainerState,
        "HostConfig" host_config: HostConfig,
        "Config" config: ContainerConfig,
        "NetworkSettings" network_settings: NetworkSettings,
    }
    struct HostConfig { "Dns" dns: Vec<String>, "DnsOptions" dns_options: Vec<String> }
    struct ContainerState { "Running" running: bool, "Health" health: Health }
    struct Health { "Status" status: String }
    struct ContainerConfig { "Hostname" hostname: String, "Labels" labels: BTreeMap<String, Option<String>> }
    struct NetworkSettings {
        "SandboxKey" sandbox_key: String,
        "Ports" ports: BTreeMap<String, Option<Vec<PortBinding>>>,
        "Networks" networks: BTreeMap<String, Option<EndpointSettings>>,
    }
    struct PortBinding { "HostIp" host_ip: String, "HostPort" host_port: String }
    struct EndpointSettings {
        "NetworkID" network_id: String,
        "IPAddress" ip_address: String,
        "GlobalIPv6Address" global_ipv6_address: String,
        "Links" links: Vec<String>,
        "Aliases" aliases: Vec<String>,
        "DNSNames" dns_names: Vec<String>,
    }

    struct Event { "Type" kind: String, "Action" action: String, "Actor" actor: Actor }
    struct Actor { "ID" id: String, "Attributes" attributes: BTreeMap<String, Option<String>> }
}
