//! The largest step an engine can be asked for, computed once: what is free of a device's memory afterwards
//! the cache may have.

use std::sync::Arc;

use types::{Sampling, SamplingParams};

use crate::backend::Network;
use crate::batch::Batch;
use crate::blocks::BlockPool;
use crate::error::Error;
use crate::request::{Request, SampleRequest};
use crate::scheduler::{Limits, Scheduler};

/// Prompts of a profile: so many of this length.
fn prompts(limits: &Limits) -> (usize, usize) {
    let length = limits.prefill_chunk_tokens.min(limits.context.saturating_sub(2)).max(1);
    (limits.prefill_chunk_tokens.div_ceil(length).min(limits.max_sequences), length)
}

/// Blocks of the cache that it needs.
pub(crate) fn blocks(limits: &Limits) -> usize {
    let (count, length) = prompts(limits);
    // Each response may have a block of its own behind the prompt's, twice over a boundary.
    count * (length.div_ceil(limits.block_tokens) + 1) + 2 * limits.max_sequences
}

/// Computes steps with as many prompt tokens, and then with as many responses, as there may be.
pub(crate) fn run(network: &mut Network, limits: &Limits) -> Result<(), Error> {
    let limits = Limits { max_waiting: usize::MAX / 2, prefix_cache: false, ..*limits };
    let mut scheduler = Scheduler::new(limits, BlockPool::new(blocks(&limits)), None);
    let (count, length) = prompts(&limits);
    let params = SamplingParams { max_new_tokens: 2, ignore_eos: true, ..SamplingParams::default() };
    let sampling = Arc::new(Sampling::new(params).unwrap_or_default());
    let mut id = 0;
    for prompt in 0..count {
        let siblings = limits.max_sequences / count + usize::from(prompt < limits.max_sequences % count);
        let token = u32::try_from(prompt % limits.vocab_size).unwrap_or(0);
        let samples = (id..id + siblings as u64).map(|id| SampleRequest { id, seed: id }).collect();
        id += siblings as u64;
        let request = Request {
            prompt_tokens: vec![token; length].into(),
            samples,
            sampling: Arc::clone(&sampling),
            eos_token_ids: [].into(),
            min_tokens: 0,
            grammar: None,
            top_logprobs: 0,
            stream: false,
        };
        // A context of one token has room for no response, and no step to measure.
        drop(scheduler.submit(&request));
    }
    let mut batch = Batch::default();
    loop {
        scheduler.plan(&mut batch);
        if batch.tokens.is_empty() {
            return Ok(());
        }
        let drawn = network.step(&batch)?;
        scheduler.commit(&batch, drawn);
    }
}
