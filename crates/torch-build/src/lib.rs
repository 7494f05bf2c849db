//! Where build scripts find libtorch and the CUDA headers.
//!
//! `LIBTORCH` names a folder with `include/` and `lib/`; in the checkout it stands in `.cargo/config.toml`
//! after `setup/install.sh`. The CUDA headers are looked for beside it, in `../nvidia/*/include`, where the
//! Python wheels put them.

use std::fs;
use std::path::{Path, PathBuf};

/// The folder that an environment variable names, which must hold `file`. The build script runs again when it
/// changes.
///
/// # Errors
/// When the variable is not set, or the folder has no such file.
pub fn folder(variable: &str, file: &str) -> Result<PathBuf, String> {
    println!("cargo::rerun-if-env-changed={variable}");
    let value = std::env::var_os(variable).ok_or_else(|| {
        format!("{variable} is not set; run setup/install.sh and build inside the checkout")
    })?;
    let folder = PathBuf::from(value);
    if !folder.join(file).is_file() {
        return Err(format!("{variable}={} has no {file}; run setup/install.sh", folder.display()));
    }
    Ok(folder)
}

/// The header folders of a libtorch.
pub fn includes(libtorch: &Path) -> Vec<PathBuf> {
    vec![libtorch.join("include"), libtorch.join("include/torch/csrc/api/include")]
}

/// The header folders of the CUDA wheels that lie beside a libtorch; together they must hold `headers`.
///
/// # Errors
/// When they do not.
pub fn cuda_includes(libtorch: &Path, headers: &[&str]) -> Result<Vec<PathBuf>, String> {
    let wheels = libtorch.join("../nvidia");
    let missing = |reason: String| {
        format!(
            "the feature cuda needs the CUDA headers in {}: {reason}; run `setup/install.sh cuda`",
            wheels.display()
        )
    };
    let mut includes = Vec::new();
    for wheel in fs::read_dir(&wheels).map_err(|error| missing(error.to_string()))? {
        let include = wheel.map_err(|error| missing(error.to_string()))?.path().join("include");
        if include.is_dir() {
            includes.push(include);
        }
    }
    for header in headers {
        if !includes.iter().any(|include| include.join(header).is_file()) {
            return Err(missing(format!("no {header}")));
        }
    }
    includes.sort();
    Ok(includes)
}
