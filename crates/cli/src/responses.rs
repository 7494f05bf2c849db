//! Responses of a model folder to prompts, with a bar.

use std::path::Path;

use engine::EngineConfig;
use engine::generate::{DrawOptions, Generator, Progress, Response};
use types::PromptContent;

use crate::bar::Bar;

/// `options.n` responses to each prompt.
///
/// # Errors
/// When the model cannot be used or a prompt is too long for it.
pub(crate) fn draw(
    model: &Path,
    prompts: &[PromptContent],
    options: &DrawOptions,
) -> anyhow::Result<Vec<Vec<Response>>> {
    let mut generator = Generator::load(model, &EngineConfig::default())?;
    let (bar, total) = (Bar::new("responses", prompts.len() as u64), prompts.len() as u64);
    let drawn = generator
        .responses(prompts, options, &mut |progress| bar.at(progress.requests, total, &pace(progress)));
    bar.finish();
    drawn
}

/// Tokens per second, for people.
pub(crate) fn pace(progress: &Progress) -> String {
    format!("prompts, {:.0} tokens/s", progress.tokens_per_second())
}
