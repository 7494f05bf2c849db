//! How a group comes into being: every member notes itself in the store, waits for the others, then connects
//! to them.
//!
//! Under `<name>/` in the store, for each rank `r`:
//! - `join/r` counts who came as rank `r`: a second one means that the name is used again;
//! - `member/r` says that rank `r` is there, `host` which rank hosts the store, `closed` that a member gave
//!   up;
//! - `c10d/` holds the keys of c10d itself;
//! - `ended`, `cause`, `wake/r`, `report/r` and `at/r` belong to [`diagnosis`](crate::diagnosis) and
//!   [`watcher`](crate::watcher).

use std::net::{ToSocketAddrs, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use tch::Device;

use crate::deadline::{Deadline, Late, call_within};
use crate::error::{Error, Result};
use crate::ffi::{RawAddress, RawGroup, RawGroupConfig, RawStore, Thrown};
use crate::store::{Address, Connection, Nul, Store, text};

/// How much longer than our deadline c10d lets an operation run: ours ends it first and has more to say.
const C10D_EXTRA_TIMEOUT: Duration = Duration::from_secs(10);

/// How much longer than its own limit c10d may take to connect before its thread is left behind.
const CONNECT_GRACE_DELAY: Duration = Duration::from_millis(500);

/// A member's view of a group to be formed. All members give the same, but for `rank` and the address.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    /// Name of the group; once used, it is never used again with the same store, not even when joining
    /// failed.
    pub name: String,
    /// This process's rank, from 0.
    pub rank: usize,
    /// Number of members.
    pub world_size: usize,
    /// What carries the data.
    pub backend: Backend,
    /// How long an operation may take, from launching it.
    pub timeout: Duration,
    /// How long to wait for all members to come and connect.
    pub join_timeout: Duration,
}

/// What carries the data of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Gloo: TCP between CPU tensors.
    Gloo(GlooAddress),
    /// NCCL between CUDA tensors; without the feature `cuda` joining is refused.
    Nccl {
        /// The CUDA device of this process.
        device: usize,
    },
}

impl Backend {
    /// What carries tensors that lie on a device: NCCL between GPUs, and Gloo for everything else, on the
    /// address from which this machine reaches the store.
    pub fn for_device(device: Device) -> Self {
        match device {
            Device::Cuda(device) => Self::Nccl { device },
            Device::Cpu | Device::Mps | Device::Vulkan => Self::Gloo(GlooAddress::TowardsStore),
        }
    }
}

/// Where this process lets the other members connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GlooAddress {
    /// On the address from which this machine reaches the store: loopback when the store is on loopback.
    TowardsStore,
    /// On a name or address of this machine.
    Host(String),
    /// On a network interface, such as `eth0`.
    Interface(String),
}

impl GroupConfig {
    pub(crate) fn validate(&self) -> Result<()> {
        let Self { name, rank, world_size, .. } = self;
        let reason = if name.is_empty() || name.contains(['\0', '/']) {
            format!("{name:?} is no name for a group: it is empty or contains NUL or '/'")
        } else if i32::try_from(*world_size).is_err() || rank >= world_size {
            format!("there is no rank {rank} in a world of {world_size}")
        } else if self.timeout.is_zero() || self.join_timeout.is_zero() {
            "timeout and join_timeout must be longer than nothing".to_owned()
        } else {
            return Ok(());
        };
        Err(Error::Invalid { group: name.clone(), operation: "join", reason })
    }
}

/// A group all of whose members are there and connected.
#[derive(Debug)]
pub(crate) struct Joined {
    pub(crate) raw: RawGroup,
    /// To the store, under the group's name.
    pub(crate) control: Connection,
    /// The rank whose process hosts the store, if a member does.
    pub(crate) host_rank: Option<usize>,
}

/// Joins the group; blocks until all members have, at most somewhat longer than `join_timeout`.
pub(crate) fn join(store: &Store, config: &GroupConfig) -> Result<Joined> {
    let waiting = Deadline::after(config.join_timeout);
    let control = store.connection.under(&config.name)?;
    note_arrival(&control, config)?;
    wait_for_members(&control, config, &waiting)?;
    let host_rank = host_rank(&control)?;
    let raw = connect(&control, config, &waiting)?;
    Ok(Joined { raw, control, host_rank })
}

fn note_arrival(control: &Connection, config: &GroupConfig) -> Result<()> {
    let rank = config.rank;
    let hosts = control.serves;
    let keys = [&*format!("join/{rank}"), &*format!("member/{rank}"), "host"];
    let count = control.call("join as", &keys, move |raw, keys| {
        let count = raw.add(&keys[0], 1)?;
        if count == 1 {
            if hosts {
                raw.set(&keys[2], rank.to_string().as_bytes())?;
            }
            raw.set(&keys[1], b"here")?;
        }
        Ok(count)
    })?;
    if count > 1 {
        let reason =
            format!("rank {rank} has joined before; a name is used once, and by one process for each rank");
        return Err(Error::Invalid { group: config.name.clone(), operation: "join", reason });
    }
    Ok(())
}

fn wait_for_members(control: &Connection, config: &GroupConfig, waiting: &Deadline) -> Result<()> {
    let members: Vec<String> = (0..config.world_size).map(|rank| format!("member/{rank}")).collect();
    let mut keys: Vec<&str> = members.iter().map(String::as_str).collect();
    keys.push("closed");
    let limit = waiting.left();
    let rank = config.rank;
    // Missing ranks, or who closed the group while this rank waited.
    let (missing, closed) = control.call_for(limit, "wait for", &keys, move |raw, keys| {
        let (closed, members) = keys.split_last().expect("`closed` is the last key");
        let mut missing = Vec::new();
        if !raw.wait(members, limit)? {
            for (rank, member) in members.iter().enumerate() {
                if !raw.check(member)? {
                    missing.push(rank);
                }
            }
        }
        let closed_by = if raw.check(closed)? { raw.get(closed, Duration::from_millis(100))? } else { None };
        if !missing.is_empty() && closed_by.is_none() {
            raw.set(closed, rank.to_string().as_bytes())?;
        }
        Ok((missing, closed_by))
    })?;
    let reason = match (missing.is_empty(), closed) {
        (true, None) => return Ok(()),
        (false, _) => format!("no sign of rank {}", list(&missing)),
        (true, Some(rank)) => format!("rank {} had given up waiting", String::from_utf8_lossy(&rank)),
    };
    Err(not_joined(config, waiting, missing, reason))
}

fn host_rank(control: &Connection) -> Result<Option<usize>> {
    let host = control.call("look for", &["host"], |raw, keys| {
        if raw.check(&keys[0])? { raw.get(&keys[0], Duration::from_millis(100)) } else { Ok(None) }
    })?;
    Ok(host.and_then(|rank| String::from_utf8(rank).ok()?.parse().ok()))
}

fn connect(control: &Connection, config: &GroupConfig, waiting: &Deadline) -> Result<RawGroup> {
    let raw = Arc::clone(control.raw());
    let prefix = control.full_key("c10d")?;
    let address = control.address.clone();
    let limit = waiting.left().max(Duration::from_millis(1));
    let own = config.clone();
    let connecting = call_within("group-join", limit.saturating_add(CONNECT_GRACE_DELAY), move || {
        let raw_config = RawGroupConfig {
            prefix: &prefix,
            rank: own.rank,
            world_size: own.world_size,
            join_limit: limit,
            operation_limit: own.timeout.saturating_add(C10D_EXTRA_TIMEOUT),
        };
        make(&raw, &raw_config, &own.backend, &address)
    });
    match connecting {
        Ok(Ok(group)) => Ok(group),
        Ok(Err(reason)) => Err(not_joined(config, waiting, Vec::new(), format!("cannot connect: {reason}"))),
        Err(late @ (Late::NotBack(_) | Late::NoThread(_))) => {
            Err(not_joined(config, waiting, Vec::new(), format!("cannot connect: {late}")))
        }
    }
}

fn make(
    store: &RawStore,
    config: &RawGroupConfig<'_>,
    backend: &Backend,
    store_address: &Address,
) -> std::result::Result<RawGroup, Unconnected> {
    let group = match backend {
        Backend::Gloo(GlooAddress::TowardsStore) => {
            RawGroup::gloo(store, config, &RawAddress::Host(&text(&towards(store_address)?)?))?
        }
        Backend::Gloo(GlooAddress::Host(host)) => {
            RawGroup::gloo(store, config, &RawAddress::Host(&text(host)?))?
        }
        Backend::Gloo(GlooAddress::Interface(name)) => {
            RawGroup::gloo(store, config, &RawAddress::Interface(&text(name)?))?
        }
        #[cfg(feature = "cuda")]
        Backend::Nccl { device } => RawGroup::nccl(store, config, *device)?,
        #[cfg(not(feature = "cuda"))]
        Backend::Nccl { .. } => return Err(Unconnected::NoNccl),
    };
    Ok(group)
}

/// Why this rank cannot connect to the others.
#[derive(Debug, thiserror::Error)]
enum Unconnected {
    #[error(transparent)]
    Thrown(#[from] Thrown),
    #[error(transparent)]
    Nul(#[from] Nul),
    #[error("no way to the store {store}: {error}")]
    NoWay { store: Address, error: std::io::Error },
    #[cfg(not(feature = "cuda"))]
    #[error("this build has no NCCL; build it with the feature `cuda`")]
    NoNccl,
}

/// The address of this machine on the way to the store. Connecting a UDP socket sends nothing; it only asks
/// the kernel for the route.
fn towards(store: &Address) -> std::result::Result<String, Unconnected> {
    let targets = match (store.host.as_str(), store.port).to_socket_addrs() {
        Ok(targets) => targets,
        Err(error) => return Err(Unconnected::NoWay { store: store.clone(), error }),
    };
    let mut last = std::io::Error::other("the name has no address");
    for target in targets {
        let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        match UdpSocket::bind(any)
            .and_then(|socket| socket.connect(target).and_then(|()| socket.local_addr()))
        {
            Ok(local) => return Ok(local.ip().to_string()),
            Err(error) => last = error,
        }
    }
    Err(Unconnected::NoWay { store: store.clone(), error: last })
}

fn not_joined(config: &GroupConfig, waiting: &Deadline, missing: Vec<usize>, reason: String) -> Error {
    Error::Join {
        group: config.name.clone(),
        rank: config.rank,
        world_size: config.world_size,
        waited: waiting.waited(),
        missing,
        reason,
    }
}

fn list(ranks: &[usize]) -> String {
    ranks.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configs_that_make_no_sense_are_refused() {
        let good = GroupConfig {
            name: "group-1".into(),
            rank: 0,
            world_size: 2,
            backend: Backend::Gloo(GlooAddress::TowardsStore),
            timeout: Duration::from_secs(1),
            join_timeout: Duration::from_secs(1),
        };
        good.validate().expect("a good config");
        let bad = [
            GroupConfig { name: String::new(), ..good.clone() },
            GroupConfig { name: "a/b".into(), ..good.clone() },
            GroupConfig { name: "a\0b".into(), ..good.clone() },
            GroupConfig { rank: 2, ..good.clone() },
            GroupConfig { world_size: 0, ..good.clone() },
            GroupConfig { world_size: usize::MAX, ..good.clone() },
            GroupConfig { timeout: Duration::ZERO, ..good.clone() },
            GroupConfig { join_timeout: Duration::ZERO, ..good },
        ];
        for config in bad {
            assert!(matches!(config.validate(), Err(Error::Invalid { operation: "join", .. })), "{config:?}");
        }
    }

    #[test]
    fn the_way_to_a_store_on_loopback_is_loopback() {
        let local = |host: &str| towards(&Address { host: host.into(), port: 1 });
        assert_eq!(local("127.0.0.1").expect("loopback"), "127.0.0.1");
        let error = local("no such host").expect_err("not a name").to_string();
        assert!(error.starts_with("no way to the store no such host:1"), "{error}");
    }
}
