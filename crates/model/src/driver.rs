//! NVIDIA's driver on this machine. Nothing here links torch.

use std::fs;

/// The oldest driver that runs CUDA 13, which libtorch 2.11 is built with (CUDA's release notes, table 3).
pub const MIN_DRIVER: u32 = 580;

/// The version of the kernel's driver, if there is one.
pub fn driver() -> Option<String> {
    let text = fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    version_in(&text)
}

/// Whether a driver of this version is too old.
pub fn is_too_old(version: &str) -> bool {
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    major.is_some_and(|major| major < MIN_DRIVER)
}

/// `580.65.06` of `NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun ...`.
fn version_in(text: &str) -> Option<String> {
    text.lines().next()?.split_whitespace().find(|word| is_version(word)).map(str::to_owned)
}

fn is_version(word: &str) -> bool {
    word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_and_compared() {
        let line = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 2025\n";
        assert_eq!(version_in(line).as_deref(), Some("580.65.06"));
        assert_eq!(version_in("something else\n"), None);
        assert!(is_too_old("570.133.20") && !is_too_old("580.65.06") && !is_too_old("600.1"));
    }
}
