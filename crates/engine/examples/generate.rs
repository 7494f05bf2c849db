//! Generates with a model folder: `cargo run -p engine --example generate -- MODEL_DIR PROMPT`

use std::path::Path;

use anyhow::Context as _;
use engine::EngineConfig;
use engine::generate::{DrawOptions, Generator};
use types::{PromptContent, SamplingParams};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: generate MODEL_DIR PROMPT";
    let (folder, prompt) = (arguments.next().context(usage)?, arguments.next().context(usage)?);

    let mut generator = Generator::load(Path::new(&folder), &EngineConfig::default())?;
    let sampling = SamplingParams { temperature: 0.8, max_new_tokens: 32, ..SamplingParams::default() };
    let options = DrawOptions { n: 3, seed: 1, sampling: sampling.try_into()? };
    let prompts = [PromptContent::Text(prompt)];
    for response in generator.responses(&prompts, &options, &mut |_| {})?.remove(0) {
        let logprob: f32 = response.logprobs.iter().sum();
        println!("{:?} {} tokens, log-prob {logprob:.3}", response.text, response.tokens.len());
    }
    Ok(())
}
