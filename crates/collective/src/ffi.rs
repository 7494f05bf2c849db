//! The border to C++: the functions of `bridge/bridge.h`, each behind one safe method.
//!
//! `unsafe` is used here and in the two submodules only. Invariants:
//! 1. A `Raw*` value owns one C++ object, made by the bridge, and frees it once.
//! 2. The bridge catches every C++ exception; here they are [`Thrown`].
//! 3. Tensors are lent for the length of a call. What an operation still needs afterwards the bridge keeps
//!    alive, so that dropping a tensor early is never a use after free. It does not keep others from writing
//!    to it.

use std::ffi::{CStr, c_char, c_int};
use std::ptr;

mod group;
mod store;

pub(crate) use group::{Kind, Launch, RawAddress, RawGroup, RawGroupConfig, RawWork};
pub(crate) use store::RawStore;

const OK: c_int = 0;
const PENDING: c_int = 2;

/// Where a bridge function puts its message.
type Message = *mut *mut c_char;

unsafe extern "C" {
    fn sluice_message_free(message: *mut c_char);
}

/// A C++ exception, or what else kept a bridge function from its work: the message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Thrown(String);

/// Runs a bridge function. `Ok(true)`: done; `Ok(false)`: not finished, or not there, in time.
///
/// # Errors
/// What it threw.
fn call(function: impl FnOnce(Message) -> c_int) -> Result<bool, Thrown> {
    let mut message = ptr::null_mut();
    match function(&mut message) {
        OK => Ok(true),
        PENDING => Ok(false),
        _ if message.is_null() => Err(Thrown("no memory for the message".to_owned())),
        _ => {
            // SAFETY: a message that is not null is a C string the bridge allocated for us (bridge.h).
            let text = unsafe { CStr::from_ptr(message) }.to_string_lossy().trim().to_owned();
            // SAFETY: as above, and it is not used after this.
            unsafe { sluice_message_free(message) };
            Err(Thrown(text))
        }
    }
}
