//! How much room a disk has.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::path::Path;

use nix::sys::statvfs::statvfs;

/// Bytes that an unprivileged process may still write to the file system under `path`.
///
/// # Errors
/// What the operating system refuses.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let found = statvfs(path)?;
    Ok(found.blocks_available().saturating_mul(found.fragment_size()))
}

/// Whether an error, or what it was caused by, is that a disk or a quota is full.
pub fn is_disk_full(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(inner) = cause {
        let own = inner.downcast_ref::<io::Error>();
        if matches!(own.map(io::Error::kind), Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded)) {
            return true;
        }
        // The source of an error that wraps another one is that one's source.
        cause = match own.and_then(io::Error::get_ref) {
            Some(wrapped) => Some(wrapped),
            None => inner.source(),
        };
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_room_and_nothing_has_none() {
        assert!(free_bytes(Path::new("/tmp")).unwrap() > 0);
        assert!(free_bytes(Path::new("/nowhere/at/all")).is_err());
    }

    #[test]
    fn a_full_disk_is_found_among_the_causes() {
        let full = io::Error::from(ErrorKind::StorageFull);
        assert!(is_disk_full(&full));
        let wrapped = io::Error::other(full);
        assert!(is_disk_full(&wrapped));
        assert!(is_disk_full(&io::Error::from_raw_os_error(28)));
        assert!(!is_disk_full(&io::Error::from(ErrorKind::PermissionDenied)));
    }
}
