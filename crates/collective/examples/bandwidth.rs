//! How fast broadcast and all-reduce are between processes of this machine, over Gloo on loopback.
//!
//!     cargo run --release -p collective --example bandwidth [RANKS...]
//!
//! For 2 and 3 ranks (or those given) and from 1 KiB to 256 MiB, it prints lines of `operation <TAB> ranks
//! <TAB> bytes <TAB> microseconds per operation <TAB> GB/s`, where GB/s is bytes of the tensor by time.
//! `bench/broadcast/compare.py` sets them against the same through torch.distributed.

#![expect(clippy::disallowed_types, reason = "a benchmark measures wall time")]

use std::error::Error;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use collective::{Backend, GlooAddress, GroupConfig, ProcessGroup, Reduce, Store};
use tch::{Device, Kind, Tensor};

const SIZES: [usize; 6] = [1 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20, 256 << 20];

/// About how many bytes to move for each line.
const VOLUME: usize = 1 << 30;

const TIMEOUT: Duration = Duration::from_secs(60);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, rest @ ..] = &arguments[..]
        && first == "rank"
    {
        return rank(rest);
    }
    let worlds = match &arguments[..] {
        [] => vec![2, 3],
        given => given.iter().map(|ranks| ranks.parse()).collect::<Result<_, _>>()?,
    };
    for world_size in worlds {
        let store = Store::serve("127.0.0.1", 0, TIMEOUT)?;
        let ranks = (0..world_size).map(|rank| spawn(rank, world_size, store.port()));
        for mut rank in ranks.collect::<Result<Vec<_>, _>>()? {
            if !rank.wait()?.success() {
                return Err("a rank failed".into());
            }
        }
    }
    Ok(())
}

fn spawn(rank: usize, world_size: usize, port: u16) -> std::io::Result<Child> {
    let numbers = [rank, world_size, usize::from(port)].map(|number| number.to_string());
    Command::new(std::env::current_exe()?).arg("rank").args(numbers).spawn()
}

/// One process: `RANK WORLD_SIZE PORT`.
fn rank(arguments: &[String]) -> Result<(), Box<dyn Error>> {
    let [rank, world_size, port] = arguments else { return Err("usage: rank RANK WORLD_SIZE PORT".into()) };
    tch::set_num_threads(1);
    let store = Store::connect("127.0.0.1", port.parse()?, TIMEOUT)?;
    let config = GroupConfig {
        name: "bandwidth".to_owned(),
        rank: rank.parse()?,
        world_size: world_size.parse()?,
        backend: Backend::Gloo(GlooAddress::TowardsStore),
        timeout: TIMEOUT,
        join_timeout: TIMEOUT,
    };
    let group = ProcessGroup::new(&store, config)?;
    for bytes in SIZES {
        measure(&group, "broadcast", bytes, |tensor| group.broadcast(tensor, 0))?;
        measure(&group, "all_reduce", bytes, |tensor| group.all_reduce(tensor, Reduce::Sum))?;
    }
    Ok(())
}

fn measure(
    group: &ProcessGroup,
    name: &str,
    bytes: usize,
    operation: impl Fn(&mut Tensor) -> collective::Result<()>,
) -> collective::Result<()> {
    let mut tensor = Tensor::zeros([(bytes / size_of::<f32>()) as i64], (Kind::Float, Device::Cpu));
    let rounds = (VOLUME / bytes).clamp(4, 3000);
    for _ in 0..rounds.div_ceil(10) {
        operation(&mut tensor)?;
    }
    meet(group)?;
    let start = Instant::now();
    for _ in 0..rounds {
        operation(&mut tensor)?;
    }
    meet(group)?;
    let each = start.elapsed().as_secs_f64() / rounds as f64;
    if group.rank() == 0 {
        let gigabytes = bytes as f64 / each / 1e9;
        println!("{name}\t{}\t{bytes}\t{:.1}\t{gigabytes:.3}", group.world_size(), each * 1e6);
    }
    Ok(())
}

/// Returns when all ranks are here.
fn meet(group: &ProcessGroup) -> collective::Result<()> {
    group.all_reduce(&mut Tensor::ones([1], (Kind::Float, Device::Cpu)), Reduce::Sum)
}
