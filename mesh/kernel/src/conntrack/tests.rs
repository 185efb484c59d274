use super::*;

const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));
const BACKEND: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9));
const UDP: u8 = 17;
const SCTP: u8 = 132;

#[test]
fn a_filter_without_any_part_is_refused() {
    assert!(FlowFilter::default().check("test").is_err());
    assert!(FlowFilter { v6: Some(true), ..FlowFilter::default() }.check("test").is_err());
    assert!(FlowFilter { protocol: Some(UDP), ..FlowFilter::default() }.check("test").is_ok());
}

#[test]
fn the_kernel_filters_only_what_it_filters_right() {
    let none = FlowFilter::default();
    assert!(FlowFilter { original_destination: Some(VIP), ..none }.suits_kernel());
    assert!(FlowFilter { protocol: Some(UDP), original_destination_port: Some(53), ..none }.suits_kernel());
    assert!(!FlowFilter { original_destination_port: Some(53), ..none }.suits_kernel());
    assert!(!FlowFilter { protocol: Some(SCTP), original_destination_port: Some(53), ..none }.suits_kernel());
    assert!(!FlowFilter { reply_source: Some("fd00::1".parse().unwrap()), ..none }.suits_kernel());
}

#[test]
fn addresses_tell_the_family() {
    let none = FlowFilter::default();
    assert_eq!(none.families(), [false, true]);
    assert_eq!(FlowFilter { v6: Some(true), ..none }.families(), [true]);
    assert_eq!(FlowFilter { original_destination: Some(VIP), ..none }.families(), [false]);
    assert!(FlowFilter { v6: Some(true), original_destination: Some(VIP), ..none }.families().is_empty());
}

#[test]
fn a_filter_is_encoded_with_the_flags_of_its_parts() {
    let mut out = MessageBuffer::default();
    let filter = FlowFilter {
        protocol: Some(UDP),
        original_destination: Some(VIP),
        original_destination_port: Some(53),
        reply_source: Some(BACKEND),
        ..FlowFilter::default()
    };
    encode_filter(&mut out, &filter);
    let bytes = out.finish("test").unwrap();
    let original = Tuple::parse(attribute(&bytes, CTA_TUPLE_ORIG).unwrap());
    assert_eq!(original, Tuple { destination: Some(VIP), protocol: Some(UDP), destination_port: Some(53), ..Tuple::default() });
    let reply = Tuple::parse(attribute(&bytes, CTA_TUPLE_REPLY).unwrap());
    assert_eq!(reply, Tuple { source: Some(BACKEND), protocol: Some(UDP), ..Tuple::default() });
    let flags = attribute(&bytes, CTA_FILTER).unwrap();
    let expected = FILTER_DESTINATION | FILTER_PROTOCOL | FILTER_DESTINATION_PORT;
    assert_eq!(attribute(flags, CTA_FILTER_ORIG_FLAGS).unwrap(), expected.to_ne_bytes());
    assert_eq!(attribute(flags, CTA_FILTER_REPLY_FLAGS).unwrap(), (FILTER_SOURCE | FILTER_PROTOCOL).to_ne_bytes());
    assert!(filter.matches(&original, &reply));
    assert!(!FlowFilter { reply_source: Some(VIP), ..filter }.matches(&original, &reply));
}
