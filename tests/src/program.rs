//! Our binaries, and reading what they say.

use std::io::BufRead;
use std::path::PathBuf;

use anyhow::Context as _;

/// A binary of ours, where `cargo build` puts it: beside the folder of the running test.
///
/// # Errors
/// Says how to build it.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe().context("find the running test")?;
    let folder = test.parent().and_then(|deps| deps.parent()).context("the test lies in no target folder")?;
    let path = folder.join(name);
    anyhow::ensure!(path.exists(), "{} is missing: cargo build --workspace --bins", path.display());
    Ok(path)
}

/// The next line for which `wanted` is true; all lines before are passed over but kept for the error.
///
/// # Errors
/// When the output ends first; shows what was said.
pub fn read_until(output: &mut impl BufRead, wanted: impl Fn(&str) -> bool) -> anyhow::Result<String> {
    let mut said = String::new();
    loop {
        let mut line = String::new();
        anyhow::ensure!(
            output.read_line(&mut line)? > 0,
            "the output ended before the line was said:\n{said}"
        );
        if wanted(&line) {
            return Ok(line);
        }
        said += &line;
    }
}
