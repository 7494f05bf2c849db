//! A broadcast: the flat buffer in chunks, each one operation of the group, from the learner to everybody
//! else.

use std::time::Duration;

use collective::{ProcessGroup, Work};
use tch::{Device, Kind, Tensor};

use crate::error::Result;

/// Bytes of the buffer that one operation carries. Both ends cut alike, because both use this.
const CHUNK_BYTES: usize = 64 << 20;
/// The learner's rank.
const LEARNER_RANK: usize = 0;

/// Sends a buffer; returns when the last chunk is through.
pub(crate) fn send(group: &ProcessGroup, buffer: &[u8]) -> Result<()> {
    let mut under_way = None;
    for chunk in buffer.chunks(CHUNK_BYTES) {
        // The next chunk is copied while the one before is on the wire.
        let mut tensor = on_device(chunk, group.device())?;
        wait_for(under_way.take())?;
        under_way = Some(group.start_broadcast(&mut tensor, LEARNER_RANK)?);
    }
    wait_for(under_way)
}

/// Receives a buffer of `bytes` bytes into memory of the group's device, `[bytes]` of u8.
pub(crate) fn receive(group: &ProcessGroup, bytes: usize) -> Result<Tensor> {
    let buffer = Tensor::f_empty([bytes as i64], (Kind::Uint8, group.device()))?;
    for start in (0..bytes).step_by(CHUNK_BYTES) {
        let length = CHUNK_BYTES.min(bytes - start);
        let mut chunk = buffer.f_narrow(0, start as i64, length as i64)?;
        group.broadcast(&mut chunk, LEARNER_RANK)?;
    }
    Ok(buffer)
}

fn on_device(chunk: &[u8], device: Device) -> Result<Tensor> {
    Ok(Tensor::f_from_slice(chunk)?.f_to_device(device)?)
}

fn wait_for(under_way: Option<Work>) -> Result<()> {
    match under_way {
        // The group's own deadline comes first.
        Some(work) => Ok(work.wait(Duration::MAX)?),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use collective::Store;
    use types::link::actor::{BroadcastGroup, GroupBackend};
    use types::{BroadcastGroupId, MemberId};

    use crate::group::Member;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(30);

    fn member(name: &str) -> Member {
        Member { name: name.parse().unwrap(), device: Device::Cpu, timeout: TIMEOUT }
    }

    #[test]
    fn the_plan_says_where_tensors_lie_and_not_the_members_device() {
        let store = Store::serve("127.0.0.1", 0, TIMEOUT).unwrap();
        let members: Vec<MemberId> = ["learner", "actor"].map(|name| name.parse().unwrap()).to_vec();
        let group = |backend| BroadcastGroup {
            id: BroadcastGroupId(1),
            store: format!("127.0.0.1:{}", store.port()),
            members: members.clone(),
            backend,
        };
        // A GPU that is not even there, beside a CPU.
        let on_gpu = Member { device: Device::Cuda(7), ..member("actor") };
        let plan = group(GroupBackend::Gloo);
        let received = thread::scope(|scope| {
            let receiving = scope.spawn(|| receive(&on_gpu.form(&plan).unwrap(), 3).unwrap());
            send(&member("learner").form(&plan).unwrap(), &[1, 2, 3]).unwrap();
            receiving.join().unwrap()
        });
        assert_eq!(received.device(), Device::Cpu);
        assert_eq!(Vec::<u8>::try_from(received).unwrap(), [1, 2, 3]);
        // Who has no GPU is not in the others' way for a minute.
        let error = member("actor").form(&group(GroupBackend::Nccl)).unwrap_err().to_string();
        assert!(error.contains("this member has none"), "{error}");
    }

    #[test]
    fn a_buffer_of_several_chunks_arrives_whole() {
        let store = Store::serve("127.0.0.1", 0, TIMEOUT).unwrap();
        let members: Vec<MemberId> = ["learner", "actor"].map(|name| name.parse().unwrap()).to_vec();
        let group = BroadcastGroup {
            id: BroadcastGroupId(1),
            store: format!("127.0.0.1:{}", store.port()),
            members,
            backend: GroupBackend::Gloo,
        };
        let buffer: Vec<u8> = (0..CHUNK_BYTES + 3).map(|at| (at % 251) as u8).collect();
        let received = thread::scope(|scope| {
            let receiving =
                scope.spawn(|| receive(&member("actor").form(&group).unwrap(), buffer.len()).unwrap());
            send(&member("learner").form(&group).unwrap(), &buffer).unwrap();
            receiving.join().unwrap()
        });
        assert!(Vec::<u8>::try_from(received).unwrap() == buffer);
    }
}
