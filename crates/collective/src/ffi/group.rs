//! c10d's process groups and the operations under way in them.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::{self, NonNull};
use std::time::Duration;

use tch::Tensor;

use super::{Message, RawStore, Thrown, call, store};
use crate::deadline::milliseconds;

#[repr(C)]
struct OpaqueGroup {
    _opaque: [u8; 0],
}

#[repr(C)]
struct OpaqueWork {
    _opaque: [u8; 0],
}

/// `sluice_group_config` of bridge.h.
#[repr(C)]
struct Config {
    prefix: *const c_char,
    rank: c_int,
    world_size: c_int,
    join_ms: i64,
    operation_ms: i64,
}

/// `sluice_operation` of bridge.h.
#[repr(C)]
struct Operation {
    kind: c_int,
    argument: c_int,
    tag: u32,
    input: *mut c_void,
    outputs: *const *mut c_void,
    output_count: usize,
}

unsafe extern "C" {
    fn sluice_gloo_new(
        store: *const store::Opaque,
        config: *const Config,
        host: *const c_char,
        interface: *const c_char,
        out: *mut *mut OpaqueGroup,
        message: Message,
    ) -> c_int;
    #[cfg(feature = "cuda")]
    fn sluice_nccl_new(
        store: *const store::Opaque,
        config: *const Config,
        device: c_int,
        out: *mut *mut OpaqueGroup,
        message: Message,
    ) -> c_int;
    fn sluice_group_free(group: *mut OpaqueGroup);
    fn sluice_group_abort(group: *mut OpaqueGroup, message: Message) -> c_int;
    fn sluice_group_check(group: *mut OpaqueGroup, message: Message) -> c_int;
    fn sluice_launch(
        group: *mut OpaqueGroup,
        operation: *const Operation,
        out: *mut *mut OpaqueWork,
        message: Message,
    ) -> c_int;
    fn sluice_work_wait(group: *mut OpaqueGroup, work: *mut OpaqueWork, ms: i64, message: Message) -> c_int;
    fn sluice_work_done(work: *mut OpaqueWork, done: *mut c_int, message: Message) -> c_int;
    fn sluice_work_free(work: *mut OpaqueWork);
}

/// What a new group needs to know, whatever its backend.
#[derive(Debug)]
pub(crate) struct RawGroupConfig<'a> {
    /// Before every key that c10d uses in the store.
    pub(crate) prefix: &'a CStr,
    pub(crate) rank: usize,
    pub(crate) world_size: usize,
    pub(crate) join_limit: Duration,
    /// When c10d gives an operation up by itself. Longer than our own deadline: ours knows more to say.
    pub(crate) operation_limit: Duration,
}

impl RawGroupConfig<'_> {
    fn as_config(&self) -> Config {
        Config {
            prefix: self.prefix.as_ptr(),
            rank: int(self.rank),
            world_size: int(self.world_size),
            join_ms: milliseconds(self.join_limit),
            operation_ms: milliseconds(self.operation_limit),
        }
    }
}

/// The operations of bridge.h, by their numbers there.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Broadcast = 0,
    AllReduce = 1,
    AllGatherInto = 2,
    AllToAll = 3,
    ReduceScatter = 4,
}

/// One operation to start; which fields count for which kind stands in bridge.h.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    pub(crate) kind: Kind,
    pub(crate) argument: usize,
    pub(crate) input: Option<&'a Tensor>,
    pub(crate) outputs: &'a [Tensor],
}

impl Launch<'_> {
    /// Whether its tensors have no elements, so that there is nothing to move.
    pub(crate) fn is_empty(&self) -> bool {
        self.input.into_iter().chain(self.outputs).all(|tensor| tensor.numel() == 0)
    }
}

/// A process group of c10d. Freeing it waits for the operations under way in it.
#[derive(Debug)]
pub(crate) struct RawGroup(NonNull<OpaqueGroup>);

// SAFETY: the bridge launches under a lock of its own; waiting and aborting are made by c10d to be called
// from any thread; nothing in the group belongs to the thread that made it.
unsafe impl Send for RawGroup {}
// SAFETY: as above.
unsafe impl Sync for RawGroup {}

impl Drop for RawGroup {
    fn drop(&mut self) {
        // SAFETY: the pointer came from the bridge and is freed here only.
        unsafe { sluice_group_free(self.0.as_ptr()) }
    }
}

/// The address Gloo listens on: a name or address of this machine, or one of its network interfaces.
#[derive(Debug)]
pub(crate) enum RawAddress<'a> {
    Host(&'a CStr),
    Interface(&'a CStr),
}

impl RawGroup {
    fn made(make: impl FnOnce(*mut *mut OpaqueGroup, Message) -> c_int) -> Result<Self, Thrown> {
        let mut group = ptr::null_mut();
        call(|message| make(&mut group, message))?;
        Ok(Self(NonNull::new(group).expect("the bridge sets what it reports as made")))
    }

    /// Connects all ranks over Gloo.
    pub(crate) fn gloo(
        store: &RawStore,
        config: &RawGroupConfig<'_>,
        at: &RawAddress<'_>,
    ) -> Result<Self, Thrown> {
        let (host, interface) = match at {
            RawAddress::Host(host) => (host.as_ptr(), ptr::null()),
            RawAddress::Interface(interface) => (ptr::null(), interface.as_ptr()),
        };
        // SAFETY: the store is live; config and strings live for the length of the call; one of the two is
        // not null.
        Self::made(|out, message| unsafe {
            sluice_gloo_new(store.as_ptr(), &config.as_config(), host, interface, out, message)
        })
    }

    /// Connects all ranks over NCCL.
    #[cfg(feature = "cuda")]
    pub(crate) fn nccl(store: &RawStore, config: &RawGroupConfig<'_>, device: usize) -> Result<Self, Thrown> {
        // SAFETY: the store is live; the config lives for the length of the call.
        Self::made(|out, message| unsafe {
            sluice_nccl_new(store.as_ptr(), &config.as_config(), int(device), out, message)
        })
    }

    /// Starts an operation that only matches operations of other ranks under the same tag.
    pub(crate) fn launch(&self, launch: &Launch<'_>, tag: u32) -> Result<RawWork, Thrown> {
        let outputs: Vec<*mut c_void> = launch.outputs.iter().map(tensor_pointer).collect();
        let operation = Operation {
            kind: launch.kind as c_int,
            argument: int(launch.argument),
            tag,
            input: launch.input.map_or(ptr::null_mut(), tensor_pointer),
            outputs: outputs.as_ptr(),
            output_count: outputs.len(),
        };
        let mut work = ptr::null_mut();
        // SAFETY: the group is live; operation and tensors live for the length of the call, after which c10d
        // holds references of its own to the tensors.
        call(|message| unsafe { sluice_launch(self.0.as_ptr(), &operation, &mut work, message) })?;
        Ok(RawWork(NonNull::new(work).expect("the bridge sets what it reports as made")))
    }

    /// Whether the operation is done within `limit`; `Err` when it failed.
    pub(crate) fn wait(&self, work: &RawWork, limit: Duration) -> Result<bool, Thrown> {
        // SAFETY: group and work are live.
        call(|message| unsafe {
            sluice_work_wait(self.0.as_ptr(), work.0.as_ptr(), milliseconds(limit), message)
        })
    }

    /// Fails when the connection to a peer is known to be closed.
    pub(crate) fn check(&self) -> Result<(), Thrown> {
        // SAFETY: the group is live.
        call(|message| unsafe { sluice_group_check(self.0.as_ptr(), message) })?;
        Ok(())
    }

    /// Ends every pending operation with an error and closes the connections.
    pub(crate) fn abort(&self) -> Result<(), Thrown> {
        // SAFETY: the group is live.
        call(|message| unsafe { sluice_group_abort(self.0.as_ptr(), message) })?;
        Ok(())
    }
}

/// An operation under way.
#[derive(Debug)]
pub(crate) struct RawWork(NonNull<OpaqueWork>);

// SAFETY: a c10d::Work is reference counted atomically and made to be waited for on other threads.
unsafe impl Send for RawWork {}

impl Drop for RawWork {
    fn drop(&mut self) {
        // SAFETY: the pointer came from the bridge and is freed here only.
        unsafe { sluice_work_free(self.0.as_ptr()) }
    }
}

impl RawWork {
    /// Whether the operation is over, well or not.
    pub(crate) fn is_done(&self) -> bool {
        let mut done = 0;
        // SAFETY: the work is live. An exception here is a failed operation, which waiting for it reports.
        let asked = call(|message| unsafe { sluice_work_done(self.0.as_ptr(), &mut done, message) });
        asked.is_err() || done != 0
    }
}

fn tensor_pointer(tensor: &Tensor) -> *mut c_void {
    tensor.as_ptr().cast_mut().cast()
}

/// Ranks and devices were checked against the number of ranks, which fits.
fn int(value: usize) -> c_int {
    c_int::try_from(value).expect("checked when the group was configured")
}
