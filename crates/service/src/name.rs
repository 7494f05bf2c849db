//! A member's name where none is configured.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

/// Letters of the host's name that are kept.
const HOST_CHARS: usize = 40;

/// A name that no other process has: the role, the host, the process, and something random, because
/// containers can share both of the others. It is another one with each call.
pub fn unique_name(role: &str) -> String {
    let host = host_name(HOST_CHARS);
    let process = std::process::id();
    // RandomState is seeded by the operating system; a name needs no better randomness.
    let random = RandomState::new().hash_one(process) & 0xffff;
    format!("{role}-{host}-{process}-{random:04x}")
}

/// The host's name in letters, digits and hyphens, at most so many.
pub(crate) fn host_name(most: usize) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    host.chars().take(most).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_names_of_one_process_differ() {
        let (one, other) = (unique_name("actor"), unique_name("actor"));
        assert!(one.starts_with("actor-") && one.len() <= 64, "{one}");
        assert_ne!(one, other);
    }
}
