//! The I/O runtime of commands that need one.

use std::future::Future;

use anyhow::Context as _;

/// Runs an async command to its end.
///
/// # Errors
/// Those of the command; when there is no runtime.
pub(crate) fn on_runtime<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.context("start the I/O runtime")?.block_on(command)
}
