//! The files of the repository, for tests that assert what every one of them has to keep to.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// The root of the checkout.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).unwrap_or_default()
}

/// Every file with one of these extensions, with its text. Hidden folders other than `.github`, build outputs
/// and runs are passed over.
///
/// # Errors
/// When a folder or a file cannot be read.
pub fn files(extensions: &[&str]) -> anyhow::Result<Vec<(PathBuf, String)>> {
    let mut folders = vec![root()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let skipped = name.starts_with('.') && name != ".github";
            if path.is_dir() && !skipped && name != "target" && name != "runs" {
                folders.push(path);
            } else if path.extension().is_some_and(|given| extensions.iter().any(|wanted| given == *wanted)) {
                let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
                found.push((path, text));
            }
        }
    }
    found.sort();
    Ok(found)
}
