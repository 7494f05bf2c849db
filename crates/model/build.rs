//! Compiles the bridges to FlashAttention and CUDA graphs, with the feature `cuda` only.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for file in FILES.into_iter().chain(["src/cuda/caught.h"]) {
        println!("cargo::rerun-if-changed={file}");
    }
    #[cfg(feature = "cuda")]
    compile()?;
    Ok(())
}

const FILES: [&str; 2] = ["src/cuda/flash.cpp", "src/cuda/graph.cpp"];

#[cfg(feature = "cuda")]
fn compile() -> Result<(), Box<dyn std::error::Error>> {
    let libtorch = torch_build::folder("LIBTORCH", "include/ATen/cuda/CUDAGraph.h")?;
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").define("USE_CUDA", None).files(FILES);
    let mut includes = torch_build::includes(&libtorch);
    includes.extend(torch_build::cuda_includes(&libtorch, &["cuda_runtime_api.h"])?);
    for include in &includes {
        // As system headers, so that warnings are about our code only.
        build.flag("-isystem").flag(include);
    }
    build.try_compile("sluice_cuda")?;
    println!("cargo::rustc-link-search=native={}", libtorch.join("lib").display());
    for library in ["torch_cuda", "torch_cpu", "c10_cuda", "c10"] {
        println!("cargo::rustc-link-lib=dylib={library}");
    }
    Ok(())
}
