//! c10d's TCPStore, as one connection to it.

use std::ffi::{CStr, c_char, c_int};
use std::os::fd::{IntoRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::slice;
use std::time::Duration;

use super::{Message, Thrown, call};
use crate::deadline::milliseconds;

#[repr(C)]
pub(super) struct Opaque {
    _opaque: [u8; 0],
}

unsafe extern "C" {
    fn sluice_bytes_free(bytes: *mut u8);
    fn sluice_store_serve(
        fd: c_int,
        host: *const c_char,
        ms: i64,
        out: *mut *mut Opaque,
        message: Message,
    ) -> c_int;
    fn sluice_store_connect(
        host: *const c_char,
        port: u16,
        ms: i64,
        out: *mut *mut Opaque,
        message: Message,
    ) -> c_int;
    fn sluice_store_reconnect(store: *const Opaque, out: *mut *mut Opaque, message: Message) -> c_int;
    fn sluice_store_free(store: *mut Opaque);
    fn sluice_store_set(
        store: *mut Opaque,
        key: *const c_char,
        value: *const u8,
        length: usize,
        message: Message,
    ) -> c_int;
    fn sluice_store_get(
        store: *mut Opaque,
        key: *const c_char,
        ms: i64,
        value: *mut *mut u8,
        length: *mut usize,
        message: Message,
    ) -> c_int;
    fn sluice_store_wait(
        store: *mut Opaque,
        keys: *const *const c_char,
        count: usize,
        ms: i64,
        message: Message,
    ) -> c_int;
    fn sluice_store_check(
        store: *mut Opaque,
        key: *const c_char,
        present: *mut c_int,
        message: Message,
    ) -> c_int;
    fn sluice_store_add(
        store: *mut Opaque,
        key: *const c_char,
        amount: i64,
        sum: *mut i64,
        message: Message,
    ) -> c_int;
    fn sluice_store_delete(
        store: *mut Opaque,
        key: *const c_char,
        deleted: *mut c_int,
        message: Message,
    ) -> c_int;
}

/// One connection to a store. Calls from several threads queue up behind each other, so a waiting one holds
/// up the rest. Only [`wait`](RawStore::wait) and [`get`](RawStore::get) have a limit, and not even they
/// return when the server is there but stopped.
#[derive(Debug)]
pub(crate) struct RawStore(NonNull<Opaque>);

// SAFETY: c10d's TCPStore serialises its calls with a lock of its own, and nothing in it belongs to a thread.
unsafe impl Send for RawStore {}
// SAFETY: as above.
unsafe impl Sync for RawStore {}

impl Drop for RawStore {
    fn drop(&mut self) {
        // SAFETY: the pointer came from the bridge and is freed here only.
        unsafe { sluice_store_free(self.0.as_ptr()) }
    }
}

impl RawStore {
    fn made(make: impl FnOnce(*mut *mut Opaque, Message) -> c_int) -> Result<Self, Thrown> {
        let mut store = ptr::null_mut();
        call(|message| make(&mut store, message))?;
        Ok(Self(NonNull::new(store).expect("the bridge sets what it reports as made")))
    }

    /// Serves a store on a listening socket, and connects to it as `host`.
    pub(crate) fn serve(listener: OwnedFd, host: &CStr, limit: Duration) -> Result<Self, Thrown> {
        // The bridge takes the descriptor over at once; who owns it when c10d throws is c10d's affair, and
        // closing it twice would be worse than leaking it.
        let fd = listener.into_raw_fd();
        // SAFETY: `host` is a C string for the length of the call, `fd` is ours to give away.
        Self::made(|out, message| unsafe {
            sluice_store_serve(fd, host.as_ptr(), milliseconds(limit), out, message)
        })
    }

    pub(crate) fn connect(host: &CStr, port: u16, limit: Duration) -> Result<Self, Thrown> {
        // SAFETY: `host` is a C string for the length of the call.
        Self::made(|out, message| unsafe {
            sluice_store_connect(host.as_ptr(), port, milliseconds(limit), out, message)
        })
    }

    /// A second connection to the same server.
    pub(crate) fn reconnect(&self) -> Result<Self, Thrown> {
        // SAFETY: `self` is a live store.
        Self::made(|out, message| unsafe { sluice_store_reconnect(self.0.as_ptr(), out, message) })
    }

    pub(crate) fn set(&self, key: &CStr, value: &[u8]) -> Result<(), Thrown> {
        // SAFETY: `self` is a live store; `key` and `value` live for the length of the call.
        call(|message| unsafe {
            sluice_store_set(self.0.as_ptr(), key.as_ptr(), value.as_ptr(), value.len(), message)
        })?;
        Ok(())
    }

    /// The value once the key is there; `None` when it is not there within `limit`.
    pub(crate) fn get(&self, key: &CStr, limit: Duration) -> Result<Option<Vec<u8>>, Thrown> {
        let mut value = ptr::null_mut();
        let mut length = 0;
        // SAFETY: `self` is a live store; `key` lives for the length of the call.
        let there = call(|message| unsafe {
            sluice_store_get(
                self.0.as_ptr(),
                key.as_ptr(),
                milliseconds(limit),
                &mut value,
                &mut length,
                message,
            )
        })?;
        if !there {
            return Ok(None);
        }
        // SAFETY: on success the bridge has allocated `length` bytes at `value` for us.
        let bytes = unsafe { slice::from_raw_parts(value, length) }.to_vec();
        // SAFETY: as above, and they are not used after this.
        unsafe { sluice_bytes_free(value) };
        Ok(Some(bytes))
    }

    /// Whether all the keys are there within `limit`.
    pub(crate) fn wait<K: AsRef<CStr>>(&self, keys: &[K], limit: Duration) -> Result<bool, Thrown> {
        if keys.is_empty() {
            return Ok(true);
        }
        let keys: Vec<_> = keys.iter().map(|key| key.as_ref().as_ptr()).collect();
        // SAFETY: `self` is a live store; `keys` are C strings, borrowed for the length of the call.
        call(|message| unsafe {
            sluice_store_wait(self.0.as_ptr(), keys.as_ptr(), keys.len(), milliseconds(limit), message)
        })
    }

    pub(crate) fn check(&self, key: &CStr) -> Result<bool, Thrown> {
        let mut present = 0;
        // SAFETY: `self` is a live store; `key` lives for the length of the call.
        call(|message| unsafe { sluice_store_check(self.0.as_ptr(), key.as_ptr(), &mut present, message) })?;
        Ok(present != 0)
    }

    pub(crate) fn add(&self, key: &CStr, amount: i64) -> Result<i64, Thrown> {
        let mut sum = 0;
        // SAFETY: `self` is a live store; `key` lives for the length of the call.
        call(|message| unsafe {
            sluice_store_add(self.0.as_ptr(), key.as_ptr(), amount, &mut sum, message)
        })?;
        Ok(sum)
    }

    pub(crate) fn delete(&self, key: &CStr) -> Result<bool, Thrown> {
        let mut deleted = 0;
        // SAFETY: `self` is a live store; `key` lives for the length of the call.
        call(|message| unsafe { sluice_store_delete(self.0.as_ptr(), key.as_ptr(), &mut deleted, message) })?;
        Ok(deleted != 0)
    }

    pub(super) fn as_ptr(&self) -> *const Opaque {
        self.0.as_ptr()
    }
}
