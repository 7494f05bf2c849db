//! Responses of a model folder to prompts, with a bar.

use std::path::Path;

use engine::EngineConfig;
use engine::generate::{DrawOptions, Generator, Progress, Response};
use types::PromptContent;

use crate::bar::Bar;
use crate::say::say;

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

/// The same, but a prompt that cannot be given to the model, for its length say, has no responses; says how
/// many have none, and why the first.
///
/// # Errors
/// When the engine fails, or no prompt has a response.
pub(crate) fn draw_where_possible(
    generator: &mut Generator,
    prompts: &[PromptContent],
    options: &DrawOptions,
) -> anyhow::Result<Vec<Vec<Response>>> {
    let (bar, total) = (Bar::new("responses", prompts.len() as u64), prompts.len() as u64);
    let items = prompts.iter().enumerate().map(|(number, prompt)| Ok((number, prompt.clone())));
    let (mut groups, mut refused) = (Vec::with_capacity(prompts.len()), Vec::new());
    let mut sink = |number: usize, responses: Result<Vec<Response>, String>| {
        groups.push(responses.unwrap_or_else(|problem| {
            refused.push((number, problem));
            Vec::new()
        }));
        Ok(())
    };
    let drawn = generator
        .run(items, options, &mut sink, &mut |progress| bar.at(progress.requests, total, &pace(progress)));
    bar.finish();
    drawn?;
    if let Some((number, problem)) = refused.first() {
        let (count, first) = (refused.len(), number + 1);
        anyhow::ensure!(count < prompts.len(), "no prompt has a response; the first: {problem}");
        say(&format!("{count} of {total} prompts have no response; the first is number {first}: {problem}"));
    }
    Ok(groups)
}

/// Tokens per second, for people.
pub(crate) fn pace(progress: &Progress) -> String {
    format!("prompts, {:.0} tokens/s", progress.tokens_per_second())
}
