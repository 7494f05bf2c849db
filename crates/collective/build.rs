//! Compiles the C++ bridge over c10d and links it with libtorch.
//!
//! Reads `LIBTORCH` and `SLUICE_GLOO_INCLUDE` (the headers of Gloo); in the checkout both stand in
//! `.cargo/config.toml` after `setup/install.sh`. With the feature `cuda` the CUDA headers lie beside
//! LIBTORCH.

use std::env;
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    for file in ["bridge.h", "group.hpp", "bridge.cc", "nccl.cc"] {
        println!("cargo::rerun-if-changed=src/bridge/{file}");
    }
    let header = "include/torch/csrc/distributed/c10d/ProcessGroupGloo.hpp";
    let libtorch = torch_build::folder("LIBTORCH", header)?;
    let gloo = torch_build::folder("SLUICE_GLOO_INCLUDE", "gloo/context.h")?;
    let cuda = env::var_os("CARGO_FEATURE_CUDA").is_some();

    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").define("USE_C10D_GLOO", None).define("_GLIBCXX_USE_CXX11_ABI", "1");
    build.flag("-fvisibility-inlines-hidden").file("src/bridge/bridge.cc");
    let mut includes = torch_build::includes(&libtorch);
    includes.push(gloo);
    if cuda {
        includes.extend(torch_build::cuda_includes(&libtorch, &["nccl.h", "cuda_runtime_api.h"])?);
        build.define("USE_C10D_NCCL", None).define("USE_CUDA", None).file("src/bridge/nccl.cc");
    }
    for include in &includes {
        // As system headers, so that warnings are about our code only.
        build.flag("-isystem").flag(include);
    }
    build.try_compile("sluice_collective_bridge")?;

    println!("cargo::rustc-link-search=native={}", libtorch.join("lib").display());
    let libraries: &[&str] =
        if cuda { &["torch_cuda", "torch_cpu", "c10_cuda", "c10"] } else { &["torch_cpu", "c10"] };
    for library in libraries {
        println!("cargo::rustc-link-lib=dylib={library}");
    }
    Ok(())
}
