//! One response on its way.

use std::num::NonZeroU32;
use std::ops::Range;
use std::sync::Arc;

use types::{FinishReason, PolicyVersion, Sampling, Span};

use super::batch::Drawn;
use super::blocks::BlockId;
use super::grammar::GrammarState;
use super::prefix::PrefixKey;
use super::request::{Finished, StopText, TokenLogprob};
use super::stopping::StopMatcher;

/// A response, waiting or running, with the part of its tokens that the cache holds.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) id: u64,
    pub(crate) seed: u64,
    /// Key of its group.
    pub(crate) group: u64,
    pub(crate) prompt: Arc<[u32]>,
    pub(crate) sampling: Arc<Sampling>,
    /// Most tokens of prompt and response.
    pub(crate) limit: usize,
    pub(crate) top_logprobs: usize,
    pub(crate) stream: bool,
    pub(crate) response: Vec<u32>,
    logprobs: Vec<f32>,
    surviving_mass: Vec<f32>,
    top: Vec<Vec<TokenLogprob>>,
    spans: Vec<Span>,
    cache_spans: Vec<Span>,
    /// Blocks that hold its keys and values, in order.
    pub(crate) table: Vec<BlockId>,
    /// Tokens whose keys and values the cache holds.
    pub(crate) cached: usize,
    /// The names of its first whole blocks, as many as were asked for yet.
    keys: Vec<PrefixKey>,
    /// Whether the weights in use computed all that the cache holds of it.
    pub(crate) current: bool,
    /// Whether its siblings wait for the prompt that it computes.
    pub(crate) leads: bool,
    pub(crate) stop: Option<StopMatcher>,
    /// Fewest tokens of the response.
    pub(crate) min_tokens: usize,
    /// Where it stands in its grammar, if it has one.
    pub(crate) grammar: Option<GrammarState>,
    /// The tokens that a repetition penalty applies to, if there is one.
    pub(crate) seen: Option<SeenTokens>,
}

impl Sequence {
    pub(crate) fn new(id: u64, seed: u64, group: u64, prompt: &Arc<[u32]>, sampling: &Arc<Sampling>) -> Self {
        Self {
            id,
            seed,
            group,
            prompt: Arc::clone(prompt),
            sampling: Arc::clone(sampling),
            limit: 0,
            top_logprobs: 0,
            stream: false,
            response: Vec::new(),
            logprobs: Vec::new(),
            surviving_mass: Vec::new(),
            top: Vec::new(),
            spans: Vec::new(),
            cache_spans: Vec::new(),
            table: Vec::new(),
            cached: 0,
            keys: Vec::new(),
            current: true,
            leads: false,
            stop: StopMatcher::new(sampling),
            min_tokens: 0,
            grammar: None,
            seen: None,
        }
    }

    /// Tokens of prompt and response so far.
    pub(crate) fn len(&self) -> usize {
        self.prompt.len() + self.response.len()
    }

    /// Tokens that the cache does not hold yet; at least one, the one that the next token is drawn behind.
    pub(crate) fn pending(&self) -> usize {
        self.len() - self.cached
    }

    /// The token at a position of prompt and response.
    pub(crate) fn token(&self, position: usize) -> u32 {
        match position.checked_sub(self.prompt.len()) {
            Some(index) => self.response[index],
            None => self.prompt[position],
        }
    }

    /// Records a drawn token.
    pub(crate) fn push(&mut self, drawn: &Drawn, version: PolicyVersion) {
        self.response.push(drawn.token);
        self.logprobs.push(drawn.logprob);
        if self.records_mass() {
            self.surviving_mass.push(drawn.surviving_mass);
        }
        if self.top_logprobs > 0 {
            self.top.push(drawn.top.clone());
        }
        extend_spans(&mut self.spans, version, 1);
        if let Some(seen) = &mut self.seen {
            seen.insert(drawn.token);
        }
    }

    /// Whether some tokens of the response could not be drawn somewhere.
    fn records_mass(&self) -> bool {
        self.sampling.truncates() || self.min_tokens > 0 || self.grammar.is_some()
    }

    /// Records that `version` computed the keys and values of the next `tokens` tokens.
    pub(crate) fn cache(&mut self, tokens: usize, version: PolicyVersion) {
        self.cached += tokens;
        extend_spans(&mut self.cache_spans, version, tokens);
    }

    /// Forgets the cache; the blocks are released by whoever calls this.
    pub(crate) fn forget_cache(&mut self) {
        self.cached = 0;
        self.cache_spans.clear();
        self.current = true;
        self.leads = false;
    }

    /// The name of its first `blocks` blocks of `block_tokens` tokens.
    pub(crate) fn key(&mut self, blocks: usize, block_tokens: usize) -> PrefixKey {
        for block in self.keys.len()..blocks {
            let front = self.keys.last().copied().unwrap_or_else(PrefixKey::root);
            let key = front.of(&self.tokens(block * block_tokens..(block + 1) * block_tokens));
            self.keys.push(key);
        }
        blocks.checked_sub(1).map_or_else(PrefixKey::root, |last| self.keys[last])
    }

    /// The tokens at some positions of prompt and response.
    pub(crate) fn tokens(&self, positions: Range<usize>) -> Vec<u32> {
        positions.map(|position| self.token(position)).collect()
    }

    /// The whole response.
    pub(crate) fn finish(self, finish_reason: FinishReason, stop_text: Option<StopText>) -> Finished {
        Finished {
            id: self.id,
            surviving_mass: self.records_mass().then_some(self.surviving_mass),
            response_tokens: self.response,
            rollout_logprobs: self.logprobs,
            top_logprobs: self.top,
            spans: self.spans,
            cache_spans: self.cache_spans,
            finish_reason,
            stop_text,
        }
    }
}

/// Counts `tokens` more for `version`.
fn extend_spans(spans: &mut Vec<Span>, version: PolicyVersion, tokens: usize) {
    let tokens = u32::try_from(tokens).expect("a sequence is shorter than 2^31 tokens");
    let Some(count) = NonZeroU32::new(tokens) else { return };
    match spans.last_mut() {
        Some(last) if last.version == version => last.tokens = last.tokens.saturating_add(tokens),
        _ => spans.push(Span { version, tokens: count }),
    }
}

/// A set of tokens in the order in which they were first seen.
#[derive(Debug, Clone)]
pub(crate) struct SeenTokens {
    order: Vec<u32>,
    members: Vec<u64>,
}

impl SeenTokens {
    pub(crate) fn new(vocab_size: usize, tokens: &[u32]) -> Self {
        let mut seen = Self { order: Vec::new(), members: vec![0; vocab_size.div_ceil(64)] };
        tokens.iter().for_each(|token| seen.insert(*token));
        seen
    }

    fn insert(&mut self, token: u32) {
        let (word, bit) = (token as usize / 64, 1 << (token % 64));
        if self.members[word] & bit == 0 {
            self.members[word] |= bit;
            self.order.push(token);
        }
    }

    /// The tokens, each once.
    pub(crate) fn tokens(&self) -> &[u32] {
        &self.order
    }
}
