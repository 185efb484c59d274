//! What a snapshot costs to hold: equal identifiers are one text, and lists have no spare room.

use std::sync::Arc;

use swarmesh_model::Snapshot;

const SWARM: &str = r#"{"version": 1,
"networks": [{"id": "net", "name": "back", "subnets": [{"subnet": "10.0.1.0/24"}]}],
"services": [{"id": "web", "name": "web", "vips": [{"network": "net", "address": "10.0.1.2"}], "networks": [{"network": "net"}]}],
"tasks": [
{"id": "t1", "service": "web", "name": "web.1", "node": "n1", "addresses": [{"network": "net", "address": "10.0.1.3"}]},
{"id": "t2", "service": "web", "name": "web.2", "node": "n1", "addresses": [{"network": "net", "address": "10.0.1.4"}]}],
"nodes": [{"id": "n1", "hostname": "node1"}]}
"#;

#[test]
fn an_identifier_is_one_text_however_often_it_is_named() {
    let snapshot = Snapshot::from_json(SWARM).unwrap();
    let network = snapshot.networks.values().next().unwrap().id.as_str().as_ptr();
    let service = snapshot.services.values().next().unwrap();
    let node = snapshot.nodes.values().next().unwrap().id.as_str().as_ptr();
    assert_eq!(service.vips[0].network.as_str().as_ptr(), network);
    assert_eq!(service.networks[0].network.as_str().as_ptr(), network);
    for task in snapshot.tasks.values() {
        assert_eq!(task.service.as_ref().unwrap().as_str().as_ptr(), service.id.as_str().as_ptr());
        assert_eq!(task.node.as_ref().unwrap().as_str().as_ptr(), node);
        assert_eq!(task.addresses[0].network.as_str().as_ptr(), network);
    }
}

#[test]
fn lists_have_no_spare_room() {
    let snapshot = Snapshot::from_json(SWARM).unwrap();
    for service in snapshot.services.values() {
        assert_eq!((service.vips.capacity(), service.networks.capacity()), (1, 1));
    }
    for task in snapshot.tasks.values() {
        assert_eq!(task.addresses.capacity(), 1);
    }
}

#[test]
fn the_pieces_are_the_whole_text() {
    let snapshot = Snapshot::from_json(SWARM).unwrap();
    assert_eq!(snapshot.json_lines().collect::<String>(), snapshot.to_json());
    assert_eq!(Snapshot::from_json(&snapshot.to_json()).unwrap(), snapshot);
}

#[test]
fn what_did_not_change_is_the_same_object() {
    let before = Snapshot::from_json(SWARM).unwrap();
    let changed = SWARM.replace("10.0.1.4", "10.0.1.5").replace("\"version\": 1", "\"version\": 2");
    let after = Snapshot::from_json_after(&changed, &before).unwrap();
    assert_eq!(after, Snapshot::from_json(&changed).unwrap());
    assert!(Arc::ptr_eq(&before.tasks["t1"], &after.tasks["t1"]));
    assert!(Arc::ptr_eq(&before.services["web"], &after.services["web"]));
    assert!(Arc::ptr_eq(&before.networks["net"], &after.networks["net"]));
    assert!(Arc::ptr_eq(&before.nodes["n1"], &after.nodes["n1"]));
    // What did change still names the others by their own texts.
    let task = &after.tasks["t2"];
    assert_ne!(*task, before.tasks["t2"]);
    assert_eq!(task.service.as_ref().unwrap().as_str().as_ptr(), before.services["web"].id.as_str().as_ptr());
    assert_eq!(task.node.as_ref().unwrap().as_str().as_ptr(), before.nodes["n1"].id.as_str().as_ptr());
}
