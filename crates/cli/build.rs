//! Links `sluice` without torch, although the library that it shares with `sluice-compute` uses it.
//!
//! The linker drops a shared library that no code needs which can be reached from `main`. Symbols that
//! libtorch has too would count as reachable from there: hidden, they do not.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg-bin=sluice=-Wl,--exclude-libs,ALL");
}
