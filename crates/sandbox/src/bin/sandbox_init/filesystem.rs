//! Tier A: a root file system with nothing in it but what an interpreter needs.
//!
//! ```text
//! /                 tmpfs, read-only once built
//! /usr/lib ...      the specification's folders and files, bound read-only, nosuid, nodev
//! /dev/{null,...}   bound from the outside;  /dev/shm -> /box/tmp
//! /view/proc        procfs;                  /proc -> view/proc
//! /box/tmp          a tmpfs of its own for every run;  /tmp -> box/tmp
//! ```
//!
//! The mount points that a run replaces lie one level down because a Landlock rule holds for what is beneath
//! a folder *on the mount that carries it*: the rule on `/box` covers whatever is mounted on `/box/tmp`
//! later.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, symlink};
use std::path::{Component, Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, pivot_root};

use crate::failure::{AtStep as _, Failure};
use crate::wire::Step;

/// Any folder will do: what it hides comes back when it becomes the root.
const STAGING: [&str; 4] = ["/tmp", "/mnt", "/srv", "/var"];
const OLD_ROOT: &str = "/.old";
const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];
const NONE: Option<&str> = None;

/// Builds the root and enters it.
pub(crate) fn pivot(reads: &[PathBuf], interpreter: &Path) -> Result<(), Failure> {
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).at(Step::PrivateMounts, "/")?;
    let staging = STAGING
        .iter()
        .find(|folder| Path::new(folder).is_dir())
        .ok_or_else(|| Failure::other(Step::RootMount, "none of /tmp, /mnt, /srv, /var is a folder"))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("root"), *staging, Some("tmpfs"), flags, Some("mode=755,size=1m,nr_inodes=4k"))
        .at(Step::RootMount, *staging)?;
    let old = format!("{staging}{OLD_ROOT}");
    fs::create_dir(&old).at(Step::PivotRoot, &old)?;
    pivot_root(*staging, old.as_str()).at(Step::PivotRoot, *staging)?;
    chdir("/").at(Step::PivotRoot, "chdir to the new root")?;

    for path in reads.iter().map(PathBuf::as_path).chain([interpreter]) {
        place(path).at(Step::Binds, path.display().to_string())?;
    }
    devices()?;
    folders()?;

    umount2(OLD_ROOT, MntFlags::MNT_DETACH).at(Step::PivotRoot, "detach the old root")?;
    fs::remove_dir(OLD_ROOT).at(Step::PivotRoot, OLD_ROOT)?;
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | flags;
    mount(NONE, "/", NONE, read_only, NONE).at(Step::RootMount, "make the root read-only")
}

/// Makes `path` of the old root appear at the same place, following symbolic links by repeating them.
fn place(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path).is_ok() {
        return Ok(());
    }
    let old = Path::new(OLD_ROOT).join(path.strip_prefix("/").unwrap_or(path));
    let metadata = fs::symlink_metadata(&old)?;
    let parent = path.parent().unwrap_or(Path::new("/"));
    fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    if metadata.is_symlink() {
        let target = fs::read_link(&old)?;
        symlink(&target, path)?;
        return place(&normal(&parent.join(target)));
    }
    if metadata.is_dir() {
        fs::create_dir(path)?;
    } else {
        fs::File::create(path)?;
    }
    bind(&old, path, libc::MOUNT_ATTR_NODEV)
}

/// `/a/b/../c` without the detour; links on the way are repeated by [`place`] itself.
fn normal(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                clean.pop();
            }
            Component::CurDir => {}
            other => clean.push(other),
        }
    }
    clean
}

/// A recursive read-only bind without set-user-id programs.
fn bind(from: &Path, to: &Path, extra: u64) -> io::Result<()> {
    mount(Some(from), to, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | extra,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let target = std::ffi::CString::new(std::os::unix::ffi::OsStrExt::as_bytes(to.as_os_str()))?;
    // SAFETY: the path ends in NUL, the structure is alive and of the size said.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            target.as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attributes,
            std::mem::size_of::<libc::mount_attr>(),
        )
    };
    nix::errno::Errno::result(done).map(|_| ()).map_err(io::Error::from)
}

fn devices() -> Result<(), Failure> {
    fs::create_dir("/dev").at(Step::Devices, "/dev")?;
    for name in DEVICES {
        let to = Path::new("/dev").join(name);
        let from = Path::new(OLD_ROOT).join("dev").join(name);
        // Read-only is about the node, whose times could be changed otherwise; a device is written through it
        // all the same.
        fs::File::create(&to)
            .and_then(|_| bind(&from, &to, 0))
            .at(Step::Devices, to.display().to_string())?;
    }
    for (name, target) in [
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/shm", "/box/tmp"),
    ] {
        symlink(target, name).at(Step::Devices, name)?;
    }
    Ok(())
}

fn folders() -> Result<(), Failure> {
    for (folder, link) in [("/box/tmp", "/tmp"), ("/view/proc", "/proc")] {
        fs::create_dir_all(folder).at(Step::RootMount, folder)?;
        // An interpreter or an import path may itself lie in /tmp, which then is a folder; the scratch folder
        // is also the working folder, and `tempfile` falls back to that.
        if fs::symlink_metadata(link).is_err() {
            symlink(folder, link).at(Step::RootMount, link)?;
        }
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/view/proc", Some("proc"), flags, Some("hidepid=2"))
        .at(Step::ProcMount, "/view/proc")
}
