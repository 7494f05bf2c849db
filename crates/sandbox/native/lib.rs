//! The native half of a zygote: a Python extension module that `sluice-sandbox-init` carries inside itself.
//!
//! Built by `build.rs` as a shared object without the Rust standard library, so that it depends on nothing
//! but the symbols of the interpreter that loads it.
#![no_std]

#[path = "native.rs"]
mod native;
#[path = "../src/wire.rs"]
#[allow(dead_code)]
mod wire;

/// The precompiled `core` names this symbol in its unwind tables; nothing unwinds in an aborting build.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: ends this process; a run whose set-up panics never becomes a guest.
    unsafe { native::sys::_exit(70) }
}
