//! Which sequences take part in a step, and what holds cache blocks. No arithmetic, no clock, no torch.
//!
//! Every running sequence that has one token to compute takes part in every step. Longer stretches (a prompt,
//! or a sequence that is computed again) share `prefill_chunk_tokens` rows of a step, in the order of
//! admission. Responses are admitted in the order of submission; none overtakes one that waits for room.
//!
//! Siblings share their prompt: one of them, the leader, computes it; the others begin with its blocks, a
//! copy of the last incomplete one, and only the prompt's last token to compute. A group keeps the blocks of
//! its prompt while some of it waits.
//!
//! What a sequence has computed stays in the cache behind its end, and can be found by the tokens, as long as
//! nobody needs the memory (`prefix`): the next turn of an episode begins with all of the turns before it.
//!
//! When the pool is exhausted, what nobody uses is given up first; then the prompts kept for groups of which
//! nothing runs; then the sequence admitted last gives back its blocks and waits at the head of the queue.
//! Its tokens are kept and computed again.
//!
//! Invariants:
//! 1. Blocks held by sequences and groups, kept blocks and free ones are together the pool.
//! 2. A block is written by one sequence only; what several hold is read by them.
//! 3. The sequence admitted first always gets a step on (requests that exceed the pool are refused), so that
//!    every response ends.
//! 4. A cache holds what other weights wrote only under [`CacheOnSwap::Keep`]; `cache_spans` tell the
//!    versions.
//! 5. What a request finds in the cache was computed by the weights in use, from the start of the sequence
//!    on.

mod admission;
mod outcome;
mod prefix;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;

use model::Tokenizer;
use types::PolicyVersion;

use super::batch::{Batch, Draw, DrawRule, Segment, mask_without};
use super::blocks::{BlockId, BlockPool};
use super::config::CacheOnSwap;
use super::grammar::GrammarState;
use super::random;
use super::request::{Load, MAX_TOP_LOGPROBS, Refusal, Request, Totals};
use super::sequence::{SeenTokens, Sequence};

/// The bounds a scheduler keeps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) max_sequences: usize,
    pub(crate) max_waiting: usize,
    pub(crate) prefill_chunk_tokens: usize,
    pub(crate) block_tokens: usize,
    /// Longest prompt and response together.
    pub(crate) context: usize,
    pub(crate) vocab_size: usize,
    /// Whether what has ended stays in the cache for those who begin alike.
    pub(crate) prefix_cache: bool,
    /// Longest prompt whose keys do not depend on its length.
    pub(crate) plain_positions: usize,
}

/// The responses to one prompt.
#[derive(Debug)]
struct Group {
    /// The tokens that end a response, by the model and by the request, each once.
    endings: Vec<u32>,
    prompt: PromptCache,
    running: usize,
    waiting: usize,
}

/// What the cache holds of a group's prompt.
#[derive(Debug)]
enum PromptCache {
    /// Nothing that a sibling could begin with.
    Empty,
    /// A running sibling is computing it.
    Filling,
    /// The blocks of all its tokens but the last, as the current version computed them.
    Ready(Vec<BlockId>),
}

/// Decides what each step works on.
#[derive(Debug)]
pub(crate) struct Scheduler {
    limits: Limits,
    tokenizer: Option<Arc<Tokenizer>>,
    blocks: BlockPool,
    /// Ordered, so that evictions are deterministic.
    groups: BTreeMap<u64, Group>,
    next_group: u64,
    /// In the order of admission.
    running: Vec<Sequence>,
    waiting: VecDeque<Sequence>,
    /// Ids of all of them.
    ids: HashSet<u64>,
    version: PolicyVersion,
    totals: Totals,
}

impl Scheduler {
    pub(crate) fn new(limits: Limits, blocks: BlockPool, tokenizer: Option<Arc<Tokenizer>>) -> Self {
        Self {
            limits,
            tokenizer,
            blocks,
            groups: BTreeMap::new(),
            next_group: 0,
            running: Vec::new(),
            waiting: VecDeque::new(),
            ids: HashSet::new(),
            version: PolicyVersion(0),
            totals: Totals::default(),
        }
    }

    /// Takes a request, or refuses it as a whole.
    pub(crate) fn submit(&mut self, request: &Request) -> Result<(), Refusal> {
        let mut grammars = self.grammars(request)?.into_iter();
        let limit = self.check(request)?;
        let key = self.next_group;
        self.next_group += 1;
        let endings = self.endings(request);
        let waiting = request.samples.len();
        self.groups.insert(key, Group { endings, prompt: PromptCache::Empty, running: 0, waiting });
        let penalised = request.sampling.repetition_penalty() != 1.0;
        let seen = penalised.then(|| SeenTokens::new(self.limits.vocab_size, &request.prompt_tokens));
        for sample in &request.samples {
            let mut sequence =
                Sequence::new(sample.id, sample.seed, key, &request.prompt_tokens, &request.sampling);
            sequence.limit = limit;
            sequence.top_logprobs = request.top_logprobs;
            sequence.stream = request.stream;
            sequence.min_tokens = request.min_tokens;
            sequence.seen = seen.clone();
            sequence.grammar = grammars.next();
            self.waiting.push_back(sequence);
        }
        Ok(())
    }

    /// Where each response stands in its grammar; none where there is no grammar.
    fn grammars(&self, request: &Request) -> Result<Vec<GrammarState>, Refusal> {
        let Some(grammar) = &request.grammar else { return Ok(Vec::new()) };
        if request.min_tokens > 0 {
            let problem = "min_tokens is above 0, but a grammar says where a response may end".to_owned();
            return Err(Refusal::Sampling(problem));
        }
        let endings = self.endings(request);
        let begun = GrammarState::new(grammar, self.limits.vocab_size, &endings);
        let each = request.samples.iter().map(|_| begun.clone());
        each.collect::<Result<_, _>>().map_err(|error| Refusal::Sampling(format!("the grammar: {error}")))
    }

    /// Whether a request can be served; the most tokens of prompt and response then. Registers its ids.
    fn check(&mut self, request: &Request) -> Result<usize, Refusal> {
        let Limits { context, vocab_size, max_waiting, .. } = self.limits;
        let tokens = request.prompt_tokens.len();
        if tokens == 0 {
            return Err(Refusal::EmptyPrompt);
        }
        if request.samples.is_empty() {
            return Err(Refusal::NoSample);
        }
        if tokens >= context {
            return Err(Refusal::Context { tokens, context });
        }
        let outside = request.prompt_tokens.iter().position(|token| *token as usize >= vocab_size);
        if let Some(position) = outside {
            return Err(Refusal::Token { position, token: request.prompt_tokens[position], vocab_size });
        }
        if request.top_logprobs > MAX_TOP_LOGPROBS {
            let problem =
                format!("top_logprobs is {}, must be at most {MAX_TOP_LOGPROBS}", request.top_logprobs);
            return Err(Refusal::Sampling(problem));
        }
        if !request.sampling.stop().is_empty() && self.tokenizer.is_none() {
            return Err(Refusal::NoTokenizer);
        }
        let most = request.sampling.max_new_tokens() as usize;
        if request.min_tokens > most {
            let problem = format!("min_tokens is {}, must be at most max_tokens, {most}", request.min_tokens);
            return Err(Refusal::Sampling(problem));
        }
        if request.min_tokens > 0 && self.endings(request).len() >= vocab_size {
            let problem = "min_tokens is above 0, but every token ends the response".to_owned();
            return Err(Refusal::Sampling(problem));
        }
        let limit = context.min(tokens.saturating_add(most));
        let (needed_blocks, pool_blocks) = (self.blocks_of(limit - 1), self.blocks.total());
        if needed_blocks > pool_blocks {
            return Err(Refusal::Pool { response_tokens: limit - tokens, needed_blocks, pool_blocks });
        }
        let waiting = self.waiting.len();
        if waiting + request.samples.len() > max_waiting {
            return Err(Refusal::Busy { waiting, most: max_waiting });
        }
        for (index, sample) in request.samples.iter().enumerate() {
            if !self.ids.insert(sample.id) {
                for earlier in &request.samples[..index] {
                    self.ids.remove(&earlier.id);
                }
                return Err(Refusal::DuplicateId(sample.id));
            }
        }
        Ok(limit)
    }

    /// The tokens that end a response to this request, each once.
    fn endings(&self, request: &Request) -> Vec<u32> {
        let eos = if request.sampling.ignores_eos() { &[] } else { &*request.eos_token_ids };
        let mut endings = [eos, request.sampling.stop_token_ids()].concat();
        endings.retain(|token| (*token as usize) < self.limits.vocab_size);
        endings.sort_unstable();
        endings.dedup();
        endings
    }

    /// Blocks that hold this many tokens.
    fn blocks_of(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.limits.block_tokens)
    }

    /// Gives up a response; false when there is none of this id.
    pub(crate) fn cancel(&mut self, id: u64) -> bool {
        if !self.ids.remove(&id) {
            return false;
        }
        let sequence = if let Some(at) = self.running.iter().position(|sequence| sequence.id == id) {
            let sequence = self.running.remove(at);
            self.leave_running(sequence)
        } else {
            let at = self.waiting.iter().position(|sequence| sequence.id == id);
            let sequence = at.and_then(|at| self.waiting.remove(at)).expect("an id is of a sequence");
            self.group_mut(sequence.group).waiting -= 1;
            sequence
        };
        self.settle(sequence.group);
        self.totals.cancelled += 1;
        true
    }

    /// Announces the weights of `version` for all steps to come.
    pub(crate) fn swap(&mut self, version: PolicyVersion, on_swap: CacheOnSwap) {
        self.version = version;
        if on_swap == CacheOnSwap::Recompute {
            while let Some(sequence) = self.running.pop() {
                let sequence = self.leave_running(sequence);
                self.group_mut(sequence.group).waiting += 1;
                self.waiting.push_front(sequence);
            }
        }
        // What the old weights computed is for those who run with it, not for others to come.
        for sequence in &mut self.running {
            sequence.leads = false;
            sequence.current = false;
        }
        let mut groups = std::mem::take(&mut self.groups);
        groups.values_mut().for_each(|group| self.drop_prompt(group));
        self.groups = groups;
        self.blocks.withdraw_all();
    }

    /// The weights in use are those of this version too: what they have computed stays.
    pub(crate) fn renumber(&mut self, version: PolicyVersion) {
        self.version = version;
    }

    pub(crate) fn version(&self) -> PolicyVersion {
        self.version
    }

    pub(crate) fn load(&self) -> Load {
        Load {
            running: self.running.len(),
            waiting: self.waiting.len(),
            free_sequences: self.limits.max_sequences.saturating_sub(self.running.len() + self.waiting.len()),
            free_blocks: self.blocks.available(),
            kept_blocks: self.blocks.kept(),
            total_blocks: self.blocks.total(),
        }
    }

    pub(crate) fn totals(&self) -> Totals {
        Totals { evicted_blocks: self.blocks.evictions(), ..self.totals }
    }

    /// Fills `batch` with the next step's work; it stays empty when there is none.
    pub(crate) fn plan(&mut self, batch: &mut Batch) {
        batch.clear();
        let mut chunk = self.limits.prefill_chunk_tokens;
        let mut at = 0;
        while at < self.running.len() {
            let rows = rows_of(&self.running[at], chunk);
            if rows > 0 && !self.grow(at, rows) {
                break;
            }
            self.add_segment(at, rows, &mut chunk, batch);
            at += 1;
        }
        self.admit(&mut chunk, batch);
    }

    /// Adds the next `rows` tokens of a running sequence to the step.
    fn add_segment(&self, at: usize, rows: usize, chunk: &mut usize, batch: &mut Batch) {
        if rows == 0 {
            return;
        }
        let sequence = &self.running[at];
        if sequence.pending() > 1 {
            *chunk -= rows;
        }
        let first = batch.tokens.len();
        let end = sequence.cached + rows;
        batch.tokens.extend((sequence.cached..end).map(|position| sequence.token(position)));
        let draws = end == sequence.len();
        if draws {
            let first_seen = batch.seen.len();
            batch.seen.extend(sequence.seen.iter().flat_map(SeenTokens::tokens));
            let first_mask = batch.masks.len();
            if let Some(grammar) = &sequence.grammar {
                batch.masks.extend(grammar.mask());
            } else if sequence.response.len() < sequence.min_tokens {
                let endings = &self.groups[&sequence.group].endings;
                batch.masks.extend(mask_without(endings, self.limits.vocab_size));
            }
            batch.draws.push(Draw {
                row: batch.tokens.len() - 1,
                rule: DrawRule::new(&sequence.sampling),
                uniform: random::uniform(sequence.seed, sequence.response.len()),
                seen: first_seen..batch.seen.len(),
                mask: (first_mask < batch.masks.len()).then_some(first_mask..batch.masks.len()),
                top: sequence.top_logprobs,
            });
        }
        let first_block = batch.tables.len();
        batch.tables.extend(&sequence.table);
        batch.segments.push(Segment {
            sequence: at,
            rows: first..batch.tokens.len(),
            start: sequence.cached,
            prompt_tokens: sequence.prompt.len(),
            table: first_block..batch.tables.len(),
            draw: draws.then(|| batch.draws.len() - 1),
        });
    }

    fn group_mut(&mut self, key: u64) -> &mut Group {
        self.groups.get_mut(&key).expect("a group lives as long as its sequences")
    }
}

/// Rows that a sequence takes in a step of which `chunk` rows are left for stretches.
fn rows_of(sequence: &Sequence, chunk: usize) -> usize {
    match sequence.pending() {
        1 => 1,
        pending => pending.min(chunk),
    }
}
