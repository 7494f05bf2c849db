//! A recipe's ring as files for a cluster: manifests for Kubernetes, batch scripts for Slurm.
//!
//! `ring` derives from the recipe what each role is told; `kubernetes` and `slurm` add what their scheduler
//! needs. The files are for people to read and keep: a role's configuration holds what the recipe says and
//! what the place asks for, and leaves every other default to the binary that will read it. The environment
//! of this process is left out.

pub(crate) mod kubernetes;
mod options;
mod ring;
pub(crate) mod slurm;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::Context as _;

/// A file that was rendered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RenderedFile {
    /// Its path below the output folder.
    name: String,
    text: String,
    executable: bool,
}

impl RenderedFile {
    fn new(name: impl Into<String>, text: String) -> Self {
        Self { name: name.into(), text, executable: false }
    }

    fn executable(name: impl Into<String>, text: String) -> Self {
        Self { executable: true, ..Self::new(name, text) }
    }
}

/// Writes the files below a folder and says on stdout which they are.
///
/// # Errors
/// When the system refuses.
fn write(folder: &Path, files: &[RenderedFile]) -> anyhow::Result<()> {
    for RenderedFile { name, text, executable } in files {
        let path = folder.join(name);
        let mode = if *executable { 0o755 } else { 0o644 };
        write_file(&path, text, mode).with_context(|| format!("write {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}

fn write_file(path: &Path, text: &str, mode: u32) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(path, text)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}
