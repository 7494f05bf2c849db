//! Compiles the schema with protox, so that no `protoc` has to be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["data", "coordinator", "reward", "weights"].map(|name| format!("sluice/v1/{name}.proto"));
    for file in &files {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(&files, ["."])?;
    tonic_prost_build::configure().bytes(".sluice.v1.WeightChunk.data").compile_fds(descriptors)?;
    Ok(())
}
