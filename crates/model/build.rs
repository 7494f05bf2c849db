//! Compiles the bridge to FlashAttention, with the feature `cuda` only.

fn main() {
    println!("cargo::rerun-if-changed=src/flash.cpp");
    #[cfg(feature = "cuda")]
    compile_flash();
}

#[cfg(feature = "cuda")]
fn compile_flash() {
    let torch = std::env::var_os("LIBTORCH").expect(".cargo/config.toml sets LIBTORCH");
    let torch = std::path::PathBuf::from(torch);
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .file("src/flash.cpp")
        .include(torch.join("include"))
        .include(torch.join("include/torch/csrc/api/include"))
        .flag("-isystem")
        .flag(torch.join("include").display().to_string())
        .compile("sluice_flash");
}
