//! How fast weights go from a learner to its actors through the plane, hashes checked, against the same bytes
//! broadcast by c10d alone, in turns.
//!
//!     cargo run --release -p weights --example plane_bandwidth [ACTORS [ROUNDS]]
//!
//! All are processes of this machine, over Gloo on loopback. It prints lines of `what <TAB> bytes <TAB>
//! seconds <TAB> GB/s`, and the median ratio of the plane to c10d. What the plane does more: each actor
//! hashes what it receives.

#![expect(clippy::disallowed_types, reason = "a benchmark measures wall time")]

use std::convert::Infallible;
use std::error::Error;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use collective::{Backend, GlooAddress, GroupConfig, ProcessGroup, Reduce, Store};
use model::buffer::{self, PackedWeights};
use model::{Architecture, Dimensions, ModelConfig};
use tch::{Device, Kind, Tensor};
use types::link::actor::{BroadcastGroup, GroupBackend};
use types::{BroadcastGroupId, Manifest, PolicyVersion};
use weights::{
    GroupEvent, Member, Prepare, PublishEvent, Publisher, PublisherConfig, ReceiveEvent, Receiver,
    ReceiverConfig, Snapshots,
};

const TIMEOUT: Duration = Duration::from_secs(120);
/// Bytes of one broadcast of c10d, as the plane cuts its buffer.
const CHUNK_BYTES: usize = 64 << 20;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// About 1 GiB in bf16.
fn model() -> Result<ModelConfig> {
    let dimensions = Dimensions {
        vocab_size: 65_536,
        hidden_size: 1024,
        intermediate_size: 4096,
        layers: 30,
        heads: 16,
        kv_heads: 8,
        max_positions: 4096,
    };
    Ok(ModelConfig::new(Architecture::Llama, dimensions)?)
}

/// Takes nothing of the weights: what an engine makes of them is not measured.
struct Nothing;

impl Prepare for Nothing {
    type Prepared = ();
    type Error = Infallible;

    fn prepare(&mut self, _: PolicyVersion, _: &PackedWeights<'_>) -> std::result::Result<(), Infallible> {
        Ok(())
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "member") {
        let numbers: Vec<usize> =
            arguments[1..].iter().map(|number| number.parse()).collect::<std::result::Result<_, _>>()?;
        let [rank, actors, rounds, port] = numbers[..] else {
            return Err("usage: member RANK ACTORS ROUNDS PORT".into());
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        return runtime.block_on(member(rank, actors, rounds, u16::try_from(port)?));
    }
    let number = |at: usize, default: usize| arguments.get(at).map_or(Ok(default), |text| text.parse());
    let (actors, rounds) = (number(0, 1)?, number(1, 7)?);
    let store = Store::serve("127.0.0.1", 0, TIMEOUT)?;
    let members: Vec<Child> = (0..=actors)
        .map(|rank| spawn(&[rank, actors, rounds, usize::from(store.port())]))
        .collect::<std::io::Result<_>>()?;
    for mut member in members {
        if !member.wait()?.success() {
            return Err("a member failed".into());
        }
    }
    Ok(())
}

fn spawn(numbers: &[usize]) -> std::io::Result<Child> {
    let numbers = numbers.iter().map(ToString::to_string);
    Command::new(std::env::current_exe()?).arg("member").args(numbers).spawn()
}

/// One process: the learner for rank 0, else an actor.
async fn member(rank: usize, actors: usize, rounds: usize, port: u16) -> Result<()> {
    tch::set_num_threads(1);
    let store = Store::connect("127.0.0.1", port, TIMEOUT)?;
    let config = GroupConfig {
        name: "raw".to_owned(),
        rank,
        world_size: actors + 1,
        backend: Backend::Gloo(GlooAddress::TowardsStore),
        timeout: TIMEOUT,
        join_timeout: TIMEOUT,
    };
    let raw = ProcessGroup::new(&store, config)?;
    let names: Vec<String> = (0..=actors).map(|rank| format!("member-{rank}")).collect();
    let group = BroadcastGroup {
        id: BroadcastGroupId(1),
        store: format!("127.0.0.1:{port}"),
        members: names.iter().map(|name| name.parse()).collect::<std::result::Result<_, _>>()?,
        backend: GroupBackend::Gloo,
    };
    let member = Member { name: names[rank].parse()?, device: Device::Cpu, timeout: TIMEOUT };
    let bytes = buffer::bytes(&model()?, Kind::BFloat16);
    let mut end = match rank {
        0 => End::learner(member, group, bytes).await?,
        _ => End::actor(member, group, &store).await?,
    };
    let mut ratios = Vec::new();
    for _ in 0..rounds {
        let alone = timed(&raw, || async { broadcast_alone(&raw, bytes) }).await?;
        meet(&raw)?;
        let begin = Instant::now();
        end.transfer().await?;
        meet(&raw)?;
        let plane = begin.elapsed().as_secs_f64();
        if rank == 0 {
            for (what, seconds) in [("c10d", alone), ("plane", plane)] {
                println!("{what}\t{bytes}\t{seconds:.3}\t{:.2}", bytes as f64 / seconds / 1e9);
            }
            ratios.push(alone / plane);
        }
    }
    ratios.sort_by(f64::total_cmp);
    if let Some(median) = ratios.get(ratios.len() / 2) {
        println!("the plane reaches {median:.2} of c10d with {actors} actor(s), median of {rounds} rounds");
    }
    Ok(())
}

async fn timed<F: Future<Output = Result<()>>>(raw: &ProcessGroup, work: impl FnOnce() -> F) -> Result<f64> {
    meet(raw)?;
    let begin = Instant::now();
    work().await?;
    meet(raw)?;
    Ok(begin.elapsed().as_secs_f64())
}

/// The same bytes in the same pieces, by c10d.
fn broadcast_alone(raw: &ProcessGroup, bytes: usize) -> Result<()> {
    let tensor = Tensor::f_empty([bytes as i64], (Kind::Uint8, Device::Cpu))?;
    for start in (0..bytes).step_by(CHUNK_BYTES) {
        let mut chunk = tensor.f_narrow(0, start as i64, CHUNK_BYTES.min(bytes - start) as i64)?;
        raw.broadcast(&mut chunk, 0)?;
    }
    Ok(())
}

/// Returns when all processes are here.
fn meet(raw: &ProcessGroup) -> Result<()> {
    Ok(raw.all_reduce(&mut Tensor::ones([1], (Kind::Float, Device::Cpu)), Reduce::Sum)?)
}

/// One end of the plane, connected.
enum End {
    Learner { publisher: Publisher, group: BroadcastGroupId, version: PolicyVersion },
    Actor { receiver: Receiver<Nothing>, group: BroadcastGroupId, manifest: Manifest },
}

impl End {
    async fn learner(member: Member, group: BroadcastGroup, bytes: usize) -> Result<Self> {
        let config = PublisherConfig { member, model: model()?, kind: Kind::BFloat16 };
        let mut publisher = Publisher::start(config, Snapshots::of_learner())?;
        let version = PolicyVersion(1);
        publisher.keep(version, (0..bytes).map(|at| (at % 251) as u8).collect());
        let Some(PublishEvent::Kept(manifest)) = publisher.next_event().await else {
            return Err("the version was not kept".into());
        };
        // The coordinator's part: everybody is told what comes.
        let address: Vec<&str> = group.store.rsplitn(2, ':').collect();
        let store = Store::connect("127.0.0.1", address[0].parse()?, TIMEOUT)?;
        store.set("manifest", &serde_json::to_vec(&manifest)?)?;
        let id = group.id;
        publisher.join(group)?;
        match publisher.next_event().await {
            Some(PublishEvent::Group(GroupEvent::Ready(_))) => {
                Ok(Self::Learner { publisher, group: id, version })
            }
            other => Err(format!("instead of a group: {other:?}").into()),
        }
    }

    async fn actor(member: Member, group: BroadcastGroup, store: &Store) -> Result<Self> {
        let manifest = serde_json::from_slice(&store.get("manifest", TIMEOUT)?)?;
        let config = ReceiverConfig { member, model: model()?, shared: None };
        let mut receiver = Receiver::start(config, Nothing)?;
        let id = group.id;
        receiver.join(group)?;
        match receiver.next_event().await {
            Some(ReceiveEvent::Group(GroupEvent::Ready(_))) => {
                Ok(Self::Actor { receiver, group: id, manifest })
            }
            other => Err(format!("instead of a group: {other:?}").into()),
        }
    }

    /// Sends or receives the version once.
    async fn transfer(&mut self) -> Result<()> {
        match self {
            Self::Learner { publisher, group, version } => {
                publisher.broadcast(*group, *version)?;
                match publisher.next_event().await {
                    Some(PublishEvent::Sent { .. }) => Ok(()),
                    other => Err(format!("not sent: {other:?}").into()),
                }
            }
            Self::Actor { receiver, group, manifest } => {
                receiver.receive(*group, manifest.clone())?;
                match receiver.next_event().await {
                    Some(ReceiveEvent::Arrived { .. }) => Ok(()),
                    other => Err(format!("not received: {other:?}").into()),
                }
            }
        }
    }
}
