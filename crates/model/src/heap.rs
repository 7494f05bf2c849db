//! What becomes of memory that torch gives back on the CPU.

/// Bytes; glibc allows no more. What is larger is asked of the kernel and given back to it each time.
const LARGEST_KEPT: libc::c_int = 32 << 20;

/// Lets the process keep what torch frees, for the next operation, instead of giving it back to the kernel.
///
/// Torch allocates every result anew on the CPU. By default glibc returns the top of the heap to the kernel
/// once 64 MiB are free there, and the kernel zeros each page that is asked for again: a training step of a
/// 6M network spent 7 % of its processor time on that, and takes a tenth less time without. The process keeps
/// up to 2 GiB that it has needed once. Elsewhere than with glibc this does nothing.
pub fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in
        [(libc::M_TRIM_THRESHOLD, libc::c_int::MAX), (libc::M_MMAP_THRESHOLD, LARGEST_KEPT)]
    {
        // SAFETY: takes two numbers and may be called at any time; a refusal changes nothing.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Gives the kernel back what the process keeps of freed memory.
///
/// glibc does not take the place of a large tensor that was freed for the next one of that size (before 2.38
/// it wants room for the alignment beside it). Whoever makes such tensors one after the other holds all of
/// them, in the end half of the model more than there is, unless this is called in between. Elsewhere than
/// with glibc this does nothing.
pub fn give_back_freed_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number and may be called at any time; only memory that nobody has is given back.
    unsafe {
        libc::malloc_trim(0)
    };
}
