//! Routes, tasks and certificates change while requests come, and no request fails. `cargo xtask bench http-life` is the same for
//! longer, with times.

mod load;
mod world;

use std::{io, time::Duration};

use load::{Backends, Certificates, Load, Subject, life, run};
use world::{Order, World};

struct Here<'w>(&'w mut World);

impl Subject for Here<'_> {
    fn obey(&mut self, order: Order) -> io::Result<()> {
        // As it would come from elsewhere.
        self.0.obey(order.to_string().parse().map_err(io::Error::other)?);
        Ok(())
    }
}

#[test]
fn no_request_fails_while_everything_changes() {
    const TIME: Duration = Duration::from_secs(6);
    const HOSTS: u32 = 2000;
    let directory = tempfile::tempdir().unwrap();
    let certificates = Certificates::new(directory.path()).unwrap();
    let prefix = [127, 1 + (std::process::id() % 200) as u8, 201];
    let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    run(async {
        let backends = Backends::start(prefix).await.unwrap();
        let mut world = World::start([any, any], HOSTS, &backends.addresses, directory.path()).unwrap();
        let load = Load { http: world.addresses()[0], https: world.addresses()[1], hosts: HOSTS, rate: 80.0 };
        let mut here = Here(&mut world);
        let (outcome, happened) = tokio::join!(load.run(&certificates, TIME, 1), life(&mut here, &backends, &certificates, &load, TIME));
        happened.unwrap();
        let failed = outcome.failed.len();
        assert_eq!(failed, 0, "{:#?} of {}", &outcome.failed[..failed.min(10)], outcome.times.len());
        // A busy machine may be slow, but what was asked for was asked, and what was to change was seen to.
        assert!(outcome.times.len() > 240, "{} requests", outcome.times.len());
        assert!(outcome.forms.len() > 5, "{:?}", outcome.forms);
        assert!(outcome.handshakes > 8 && outcome.certificates.len() == 2, "{} handshakes", outcome.handshakes);
        world.stop();
    })
    .unwrap();
}
