//! Files that exist only as descriptors: how programs and inputs reach a guest without a path.

use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::os::fd::OwnedFd;

use nix::sys::memfd::{MFdFlags, memfd_create};

/// A memfd with these parts one after the other, positioned at its start.
pub(crate) fn with(parts: &[&[u8]]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("sluice", MFdFlags::MFD_CLOEXEC)?);
    for part in parts {
        file.write_all(part)?;
    }
    file.rewind()?;
    Ok(file.into())
}
