//! Broadcast groups as a member sees them: how one is formed, and which stand.

use std::collections::BTreeMap;
use std::time::Duration;

use collective::{Backend, GroupConfig, ProcessGroup, Store};
use tch::Device;
use types::link::actor::{BroadcastGroup, GroupBackend};
use types::{BroadcastGroupId, HostPort, MemberId};

use crate::error::{Error, Result};

/// Groups that may stand at a time; the oldest is left for a newer one.
const STANDING_LIMIT: usize = 4;

/// What this process is in every broadcast group.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its name on the lists of members.
    pub name: MemberId,
    /// Where its broadcast tensors lie in a group that goes through NCCL.
    pub device: Device,
    /// The longest wait for a group to form, and for each chunk of a broadcast.
    pub timeout: Duration,
}

/// What became of a group.
#[derive(Debug)]
pub enum GroupEvent {
    /// All members are connected.
    Ready(BroadcastGroupId),
    /// It could not be formed.
    Failed {
        /// Which group.
        group: BroadcastGroupId,
        /// Why.
        error: Error,
    },
}

impl Member {
    /// Connects to a group; blocks until all members have, or the timeout is over.
    pub(crate) fn form(&self, group: &BroadcastGroup) -> Result<ProcessGroup> {
        let rank = group.members.iter().position(|member| *member == self.name);
        let rank = rank.ok_or_else(|| Error::NotListed { member: self.name.clone(), group: group.id })?;
        let backend = match (group.backend, self.device) {
            // On a GPU, too: what is sent and received goes through the host's memory.
            (GroupBackend::Gloo, _) => Backend::for_device(Device::Cpu),
            (GroupBackend::Nccl, Device::Cuda(_)) => Backend::for_device(self.device),
            (GroupBackend::Nccl, _) => return Err(Error::NoGpu(group.id)),
        };
        let address: HostPort = group.store.parse()?;
        let store = Store::connect(&address.host, address.port, self.timeout)?;
        let config = GroupConfig {
            name: format!("weights-{}", group.id),
            rank,
            world_size: group.members.len(),
            backend,
            timeout: self.timeout,
            join_timeout: self.timeout,
        };
        Ok(ProcessGroup::new(&store, config)?)
    }
}

/// The groups that stand.
#[derive(Debug, Default)]
pub(crate) struct Groups(BTreeMap<BroadcastGroupId, ProcessGroup>);

impl Groups {
    /// Adds a group that was formed.
    pub(crate) fn add(&mut self, id: BroadcastGroupId, group: ProcessGroup) {
        self.0.insert(id, group);
        while self.0.len() > STANDING_LIMIT {
            self.0.pop_first();
        }
    }

    /// Does something with a group. When it fails the group is dropped, whatever the reason: its members no
    /// longer agree on what comes next, and dropping it ends it for the others too, at once instead of after
    /// their timeout.
    pub(crate) fn run<T>(
        &mut self,
        id: BroadcastGroupId,
        work: impl FnOnce(&ProcessGroup) -> Result<T>,
    ) -> Result<T> {
        let result = work(self.0.get(&id).ok_or(Error::NotMember(id))?);
        if result.is_err() {
            self.remove(id);
        }
        result
    }

    /// Forgets a group.
    pub(crate) fn remove(&mut self, id: BroadcastGroupId) {
        self.0.remove(&id);
    }
}
