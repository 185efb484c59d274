//! Names that come from outside.

use crate::common::*;

#[test]
fn an_interface_name_cannot_say_anything_but_itself() {
    for name in ["et\"h0", "eth*", "et\\h0", "eth+", "é0", "a b", "x\" accept;#"] {
        let mut world = World::new();
        world.add_boxes(&rich());
        let mut interfaces = sandbox_interfaces();
        interfaces[1].name = name.to_owned();
        world.sandbox().set_interfaces(interfaces);
        let mut interfaces = box_interfaces(1);
        interfaces[1].name = name.to_owned();
        world.task(1).set_interfaces(interfaces);
        world.apply(rich());
        let pending = world.pending();
        assert_eq!(pending.keys().collect::<Vec<_>>(), ["ingress", "node", "task web.1"], "{name}");
        assert!(pending["ingress"].contains(&format!("{name:?}")), "{pending:?}");
        assert!(world.sandbox().scripts().is_empty() && world.task(1).scripts().is_empty());

        let mut world = World::new();
        world.node().set_interfaces(vec![interface(3, name, Some("bridge"), &["172.18.0.1/16"])]);
        world.apply(rich().without_task(1).without_task(2));
        assert_eq!(world.pending().keys().collect::<Vec<_>>(), ["node"], "{name}");
        assert_eq!(world.node().writes(), 0);
    }
    for name in ["eth0", "br-0123456789ab", "a;b", "vlan.10", "x{y}", "#1", "$a"] {
        let mut world = World::new();
        world.add_boxes(&rich());
        let mut interfaces = box_interfaces(1);
        interfaces[1].name = name.to_owned();
        world.task(1).set_interfaces(interfaces);
        world.apply(rich());
        world.settled();
    }
}
