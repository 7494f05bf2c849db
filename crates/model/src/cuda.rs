//! What ATen has for CUDA and tch does not expose, through bridges in C++. Compiled with the feature `cuda`
//! only.

pub mod flash;
pub mod graph;

use std::ffi::{CStr, c_char, c_int};

use tch::TchError;

unsafe extern "C" {
    safe fn sluice_cuda_devices() -> c_int;
}

/// How many GPUs torch sees.
pub fn devices() -> usize {
    usize::try_from(sluice_cuda_devices()).unwrap_or(0)
}

/// What a call of a bridge says: nothing, or the message of a C++ exception, which is freed.
///
/// # Safety
/// `message` is null, or a NUL-terminated string from `strdup` that nobody else frees.
unsafe fn outcome(message: *mut c_char) -> Result<(), TchError> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: as the caller promises.
    unsafe {
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        libc::free(message.cast());
        Err(TchError::Torch(text))
    }
}
