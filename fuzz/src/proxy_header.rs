//! What comes before a client's bytes from who is trusted to say where they come from.

use swarmesh_proxy::proxy_protocol::{Addresses, header, parse};
use swarmesh_router::model::ProxyProtocol;

/// Of version 1, with its line end; of version 2, all that its length can say.
const LONGEST: [usize; 2] = [107, 16 + 65_535];

pub fn check(input: &[u8]) {
    let whole = parse(input);
    // Of what came first, either nothing is said yet or the same.
    let step = 1 + input.len() / 512;
    let first = (0..input.len().min(256)).chain((256..input.len()).step_by(step)).map(|length| parse(&input[..length]));
    if let Some(first) = first.into_iter().find(|said| *said != Ok(None)) {
        assert_eq!(first, whole, "a beginning says something else");
    }
    match whole {
        Ok(None) => assert!(input.len() < LONGEST[usize::from(input.first() == Some(&b'\r'))], "waits for ever"),
        Ok(Some((addresses, length))) => {
            assert!(length <= input.len());
            assert_eq!(parse(&input[..length]), whole, "it needs what follows");
            if let Some(Addresses { source, destination }) = addresses {
                said_again(source, destination);
            }
        }
        Err(_) => {}
    }
}

/// Both versions say the same of these addresses, but for those that are another family's in this one's clothes.
fn said_again(source: std::net::SocketAddr, destination: std::net::SocketAddr) {
    for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
        let bytes = header(version, source, destination);
        let (addresses, length) = parse(&bytes).expect("ours is well-formed").expect("ours is whole");
        assert_eq!(length, bytes.len());
        let addresses = addresses.expect("ours has addresses");
        for (said, meant) in [(addresses.source, source), (addresses.destination, destination)] {
            assert_eq!((said.ip().to_canonical(), said.port()), (meant.ip().to_canonical(), meant.port()));
        }
    }
}
