//! What `cargo xtask bench http-life` runs: a proxy with many hosts, and the load that meets its changes.
//!
//! `life serve HTTP HTTPS HOSTS CERTIFICATES TASK…`: a proxy with one worker, which obeys orders from stdin until that ends.
//! `life load HOSTS RATE SECONDS BLOCKS [COMMAND…]`: starts `COMMAND… life serve …` and asks it in pairs of blocks, one of which is
//! quiet. A line for each block: `quiet` or `life`, requests, failed, p50, p99 and p99.9 in µs, handshakes, certificates, forms.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "says what came out")]

#[path = "../tests/life/load.rs"]
mod load;
#[path = "../tests/life/world.rs"]
mod world;

use std::{
    env, io,
    io::{BufRead, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use load::{Backends, Certificates, Load, Outcome, Subject, life};
use world::{Order, World};

type Anyhow<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Anyhow<()> {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match &words[..] {
        ["serve", http, https, hosts, certificates, tasks @ ..] => {
            let tasks = tasks.iter().map(|task| task.parse()).collect::<Result<Vec<SocketAddr>, _>>()?;
            serve([http.parse()?, https.parse()?], hosts.parse()?, &tasks, Path::new(certificates))
        }
        ["load", hosts, rate, seconds, blocks, before @ ..] => {
            load::run(ask(hosts.parse()?, rate.parse()?, Duration::from_secs_f64(seconds.parse()?), blocks.parse()?, before))?
        }
        _ => Err("life serve HTTP HTTPS HOSTS CERTIFICATES TASK…, or life load HOSTS RATE SECONDS BLOCKS [COMMAND…]".into()),
    }
}

fn serve(listen: [SocketAddr; 2], hosts: u32, tasks: &[SocketAddr], certificates: &Path) -> Anyhow<()> {
    let mut world = World::start(listen, hosts, tasks, certificates)?;
    for line in io::stdin().lock().lines() {
        world.obey(line?.parse()?);
    }
    world.stop();
    Ok(())
}

/// A proxy in a process of its own.
struct Served {
    child: Child,
    orders: ChildStdin,
}

impl Subject for Served {
    fn obey(&mut self, order: Order) -> io::Result<()> {
        writeln!(self.orders, "{order}")?;
        self.orders.flush()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // One that has ended needs no end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn ask(hosts: u32, rate: f64, time: Duration, blocks: usize, before: &[&str]) -> Anyhow<()> {
    let directory = env::temp_dir().join(format!("swarmesh-life-{}", std::process::id()));
    std::fs::create_dir(&directory)?;
    let result = ask_in(&directory, hosts, rate, time, blocks, before).await;
    std::fs::remove_dir_all(&directory)?;
    result
}

async fn ask_in(directory: &Path, hosts: u32, rate: f64, time: Duration, blocks: usize, before: &[&str]) -> Anyhow<()> {
    let certificates = Certificates::new(directory)?;
    let backends = Backends::start([127, 1 + (std::process::id() % 200) as u8, 202]).await?;
    let free = || TcpListener::bind("127.0.0.1:0")?.local_addr();
    let (http, https) = (free()?, free()?);
    let own = env::current_exe()?;
    let mut command = match before {
        [] => Command::new(&own),
        [program, arguments @ ..] => {
            let mut command = Command::new(program);
            command.args(arguments).arg(&own);
            command
        }
    };
    command.args(["serve", &http.to_string(), &https.to_string(), &hosts.to_string()]).arg(directory);
    command.args(backends.addresses.iter().map(SocketAddr::to_string));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    let orders = child.stdin.take().ok_or("no way to tell it orders")?;
    let mut served = Served { child, orders };
    let begun = Instant::now();
    // The second listener is bound after the first; routes come after both.
    while TcpStream::connect(https).is_err() {
        if begun.elapsed() > Duration::from_secs(20) {
            return Err("the proxy does not listen".into());
        }
        thread::sleep(Duration::from_millis(50));
    }
    served.obey(Order::Task(0, true))?;
    let load = Load { http, https, hosts, rate };
    // Until its routes are there; what fails in this is not counted.
    for _ in 0..100 {
        if load.run(&certificates, Duration::from_millis(100), 1).await.failed.is_empty() {
            break;
        }
    }
    for block in 0..blocks as u64 {
        // Which of the two comes first takes turns, too.
        for is_life in [block % 2 == 0, block % 2 != 0] {
            let asked = load.run(&certificates, time, block * 2 + 3);
            let outcome = if is_life {
                let (outcome, happened) = tokio::join!(asked, life(&mut served, &backends, &certificates, &load, time));
                happened?;
                outcome
            } else {
                asked.await
            };
            tell(if is_life { "life" } else { "quiet" }, outcome);
        }
    }
    Ok(())
}

fn tell(what: &str, mut outcome: Outcome) {
    for failed in outcome.failed.iter().take(10) {
        eprintln!("{failed}");
    }
    outcome.times.sort_by(f64::total_cmp);
    let rank = |part: f64| {
        let rank = (outcome.times.len() as f64 * part).ceil() as usize;
        outcome.times.get(rank.clamp(1, outcome.times.len()) - 1).map_or(f64::NAN, |time| time * 1e6)
    };
    println!(
        "{what} {} {} {:.0} {:.0} {:.0} {} {} {}",
        outcome.times.len(),
        outcome.failed.len(),
        rank(0.5),
        rank(0.99),
        rank(0.999),
        outcome.handshakes,
        outcome.certificates.len(),
        outcome.forms.len()
    );
}
