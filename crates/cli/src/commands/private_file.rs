//! Files that only their owner reads.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use service::BadInput;

/// Writes one.
///
/// # Errors
/// When it is there already or cannot be written.
pub(super) fn write_new(path: &Path, text: &str) -> anyhow::Result<()> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = match opened {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            return Err(BadInput(format!("{} is there already: name another file", path.display())).into());
        }
        opened => opened.with_context(|| format!("create {}", path.display()))?,
    };
    file.write_all(text.as_bytes()).with_context(|| format!("write {}", path.display()))
}
