use proptest::prelude::*;

use super::*;

#[test]
fn a_message_is_framed_as_netlink_7_says() {
    let mut buffer = MessageBuffer::default();
    buffer.message(0x0a0c, REQUEST | ACK, 7, |body| {
        body.netfilter_header(1, 10);
        body.attribute_str(1, "abc");
        body.nested(3, |list| list.attribute_u32_be(2, 5));
    });
    let bytes = buffer.finish("test").unwrap();
    let mut expected = Vec::new();
    expected.extend_from_slice(&40u32.to_ne_bytes());
    expected.extend_from_slice(&0x0a0cu16.to_ne_bytes());
    expected.extend_from_slice(&5u16.to_ne_bytes());
    expected.extend_from_slice(&7u32.to_ne_bytes());
    expected.extend_from_slice(&[0; 4]);
    expected.extend_from_slice(&[1, 0, 0, 10]);
    expected.extend_from_slice(&8u16.to_ne_bytes());
    expected.extend_from_slice(&1u16.to_ne_bytes());
    expected.extend_from_slice(b"abc\0");
    expected.extend_from_slice(&12u16.to_ne_bytes());
    expected.extend_from_slice(&0x8003u16.to_ne_bytes());
    expected.extend_from_slice(&8u16.to_ne_bytes());
    expected.extend_from_slice(&2u16.to_ne_bytes());
    expected.extend_from_slice(&[0, 0, 0, 5]);
    assert_eq!(bytes, expected);

    let read: Vec<_> = messages(&bytes).collect();
    assert_eq!(read.len(), 1);
    assert_eq!((read[0].kind, read[0].flags, read[0].sequence), (0x0a0c, 5, 7));
    let list = attribute(&read[0].payload[4..], 3).unwrap();
    assert_eq!(attribute(list, 2).and_then(u32_be), Some(5));
    assert_eq!(attribute(&read[0].payload[4..], 1).map(text).as_deref(), Some("abc"));
}

#[test]
fn an_attribute_too_long_for_its_length_field_is_an_error() {
    let mut buffer = MessageBuffer::default();
    buffer.attribute(1, &vec![0; 70_000]);
    assert!(matches!(buffer.finish("test"), Err(KernelError::Protocol { .. })));
    let mut buffer = MessageBuffer::default();
    buffer.nested(1, |list| (0..2).for_each(|_| list.attribute(1, &[0; 40_000])));
    assert!(matches!(buffer.finish("test"), Err(KernelError::Protocol { .. })));
}

#[test]
fn an_error_answer_tells_errno_explanation_and_place() {
    let mut payload = (-libc::EEXIST).to_ne_bytes().to_vec();
    payload.extend_from_slice(&[0; HEADER_LEN]);
    let mut tail = MessageBuffer::default();
    tail.attribute_str(ERROR_ATTR_MESSAGE, "Object exists");
    tail.attribute(ERROR_ATTR_OFFSET, &96u32.to_ne_bytes());
    payload.extend_from_slice(&tail.finish("test").unwrap());
    let message = Message { kind: libc::NLMSG_ERROR as u16, flags: CAPPED | ACK_TLVS, sequence: 1, port: 0, payload: &payload };
    let answer = Answer::parse(&message);
    assert_eq!(answer, Answer { errno: libc::EEXIST, explanation: Some("Object exists".into()), offset: Some(96) });
    let error = answer.into_result("add element").unwrap_err();
    assert!(matches!(error, KernelError::Exists { .. }));
    assert!(error.to_string().contains("Object exists"));
}

#[test]
fn a_timeout_never_rounds_to_none() {
    assert_eq!(milliseconds(Duration::from_nanos(1)), 1);
    assert_eq!(milliseconds(Duration::from_secs(3)), 3_000);
}

proptest! {
    #[test]
    fn attributes_survive_a_round_trip(values in prop::collection::vec((1u16..0x3fff, prop::collection::vec(any::<u8>(), 0..40)), 0..8)) {
        let mut buffer = MessageBuffer::default();
        for (kind, value) in &values {
            buffer.attribute(*kind, value);
        }
        let bytes = buffer.finish("test").unwrap();
        let read: Vec<(u16, Vec<u8>)> = attributes(&bytes).map(|(kind, value)| (kind, value.to_vec())).collect();
        prop_assert_eq!(read, values);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        for message in messages(&bytes) {
            let _ = Answer::parse(&message);
        }
        let _ = attributes(&bytes).count();
    }
}
