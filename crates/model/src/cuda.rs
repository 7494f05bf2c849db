//! What ATen has for CUDA and tch does not expose, through bridges in C++. Compiled with the feature `cuda`
//! only.

pub mod flash;
pub mod graph;

use std::ffi::{CStr, c_char, c_int};

use tch::TchError;

unsafe extern "C" {
    safe fn sluice_cuda_devices() -> c_int;
    fn sluice_cuda_uuid(device: c_int, uuid: *mut u8) -> *mut c_char;
    fn sluice_cuda_memory(device: c_int, free: *mut usize, total: *mut usize) -> *mut c_char;
}

/// How many GPUs torch sees.
pub fn devices() -> usize {
    usize::try_from(sluice_cuda_devices()).unwrap_or(0)
}

/// A name of a GPU that no other has: its UUID.
///
/// # Errors
/// When there is no such GPU.
pub fn gpu_name(device: usize) -> Result<String, TchError> {
    let mut uuid = [0_u8; 16];
    let index = c_int::try_from(device).unwrap_or(c_int::MAX);
    // SAFETY: the place has 16 bytes and outlives the call; the message is as `outcome` wants it.
    unsafe { outcome(sluice_cuda_uuid(index, uuid.as_mut_ptr())) }?;
    Ok(format!("GPU-{:032x}", u128::from_be_bytes(uuid)))
}

/// Bytes of a GPU that are free, and all of them.
///
/// # Errors
/// When there is no such GPU.
pub fn memory(device: usize) -> Result<(u64, u64), TchError> {
    let (mut free, mut total) = (0, 0);
    let index = c_int::try_from(device).unwrap_or(c_int::MAX);
    // SAFETY: both places outlive the call, and the message is as `outcome` wants it.
    unsafe { outcome(sluice_cuda_memory(index, &raw mut free, &raw mut total)) }?;
    Ok((free as u64, total as u64))
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
