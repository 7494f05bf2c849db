//! Compiles the C++ bridge over c10d and links it with libtorch.
//!
//! Reads `LIBTORCH` (a folder with `include/` and `lib/`) and `SLUICE_GLOO_INCLUDE` (the headers of Gloo); in the
//! checkout both stand in `.cargo/config.toml` after `setup/install.sh`. With the feature `cuda` the CUDA headers are
//! looked for beside LIBTORCH, in `../nvidia/*/include`, where the Python wheels put them.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    for file in ["bridge.h", "group.hpp", "bridge.cc", "nccl.cc"] {
        println!("cargo:rerun-if-changed=src/bridge/{file}");
    }
    let libtorch = folder("LIBTORCH", "include/torch/csrc/distributed/c10d/ProcessGroupGloo.hpp")?;
    let gloo = folder("SLUICE_GLOO_INCLUDE", "gloo/context.h")?;
    let cuda = env::var_os("CARGO_FEATURE_CUDA").is_some();

    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").define("USE_C10D_GLOO", None).define("_GLIBCXX_USE_CXX11_ABI", "1");
    build.flag("-fvisibility-inlines-hidden").file("src/bridge/bridge.cc");
    let mut includes = vec![libtorch.join("include"), libtorch.join("include/torch/csrc/api/include"), gloo];
    if cuda {
        includes.extend(cuda_includes(&libtorch)?);
        build.define("USE_C10D_NCCL", None).define("USE_CUDA", None).file("src/bridge/nccl.cc");
    }
    for include in &includes {
        // As system headers, so that warnings are about our code only.
        build.flag("-isystem").flag(include);
    }
    build.try_compile("sluice_collective_bridge")?;

    println!("cargo:rustc-link-search=native={}", libtorch.join("lib").display());
    let libraries: &[&str] =
        if cuda { &["torch_cuda", "torch_cpu", "c10_cuda", "c10"] } else { &["torch_cpu", "c10"] };
    for library in libraries {
        println!("cargo:rustc-link-lib=dylib={library}");
    }
    Ok(())
}

/// The folder that the environment variable names, which must hold `file`.
fn folder(variable: &str, file: &str) -> Result<PathBuf, Box<dyn Error>> {
    println!("cargo:rerun-if-env-changed={variable}");
    let value = env::var_os(variable).ok_or_else(|| {
        format!("{variable} is not set; run setup/install.sh and build inside the checkout")
    })?;
    let folder = PathBuf::from(value);
    if !folder.join(file).is_file() {
        return Err(format!("{variable}={} has no {file}; run setup/install.sh", folder.display()).into());
    }
    Ok(folder)
}

/// The header folders of the CUDA wheels that lie beside the torch wheel.
fn cuda_includes(libtorch: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let wheels = libtorch.join("../nvidia");
    let missing = |reason: String| {
        format!(
            "the feature cuda needs the CUDA headers in {}: {reason}; run `setup/install.sh cuda`",
            wheels.display()
        )
    };
    let mut includes = Vec::new();
    for wheel in fs::read_dir(&wheels).map_err(|error| missing(error.to_string()))? {
        let include = wheel?.path().join("include");
        if include.is_dir() {
            includes.push(include);
        }
    }
    for header in ["nccl.h", "cuda_runtime_api.h"] {
        if !includes.iter().any(|include| include.join(header).is_file()) {
            return Err(missing(format!("no {header}")).into());
        }
    }
    includes.sort();
    Ok(includes)
}
