//! An episode: one response of several turns, as a state machine without I/O (docs/decisions.md, D24).
//!
//! ```text
//! starting --begin--> ready --(a request to the engine)--> drawn --observe--> ready ... --finish--> rollout
//! ```
//!
//! Tokens are never encoded again: what the policy drew is what the next turn is computed from, and what is
//! trained. What an environment says is encoded once, behind the exact tokens so far. In a chat that is what
//! the template writes there: it renders the conversation with the new messages, and what it writes behind
//! the text so far is the observation. A template that rewrites what came before (that drops thoughts, say)
//! does not go on from these tokens; then the episode ends, and is counted.

mod conversation;

use std::sync::Arc;

use anyhow::Context as _;
use types::link::environment::EnvironmentMessage;
use types::{
    DrawnTurn, EpisodeEnd, FinishReason, Invalid, PromptContent, RolloutId, RolloutParts, Sampling,
    SamplingParams, Turns,
};

use crate::{Finished, PromptEncoder};
use conversation::Conversation;

/// What an environment says before the first turn.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Opening {
    /// Its words behind the prompt.
    pub messages: Vec<EnvironmentMessage>,
    /// The schemas of the tools that the policy may call, as a JSON list.
    pub tools: Option<String>,
    /// Most tokens that the policy may draw in all turns.
    pub max_tokens: u32,
}

/// A turn that the policy has ended, as the environment is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TurnText {
    /// Special tokens included, without the one that ended the turn.
    pub text: String,
    /// How many tokens it has, that one included.
    pub tokens: u32,
    /// It was cut off at its longest length.
    pub truncated: bool,
}

/// What the engine is asked for the next turn.
#[derive(Debug, Clone)]
pub struct TurnRequest {
    /// All tokens so far.
    pub prompt_tokens: Arc<[u32]>,
    /// How its tokens are drawn: at most as many as the episode has left.
    pub sampling: Arc<Sampling>,
    /// Of its random stream.
    pub seed: u64,
}

/// An episode under way.
#[derive(Debug)]
pub struct Episode {
    content: PromptContent,
    sampling: Arc<Sampling>,
    run_seed: u64,
    max_tokens: u32,
    /// `None` before it has begun.
    conversation: Option<Conversation>,
    prompt_tokens: Arc<[u32]>,
    /// Prompt, turns and observations: what the next turn goes on from.
    sequence: Vec<u32>,
    /// How many turns have ended.
    turns: u32,
    /// What the environment says that it is worth so far.
    reward: Option<f32>,
    /// What they were.
    drawn: Turns,
}

impl Episode {
    /// An episode that has not begun.
    pub fn new(content: PromptContent, sampling: Arc<Sampling>, run_seed: u64) -> Self {
        Self {
            content,
            sampling,
            run_seed,
            max_tokens: 0,
            conversation: None,
            prompt_tokens: Arc::from([]),
            sequence: Vec::new(),
            turns: 0,
            reward: None,
            drawn: Turns::default(),
        }
    }

    /// Makes the prompt's tokens.
    ///
    /// # Errors
    /// When a chat has no template, or does not render.
    pub fn begin(&mut self, encoder: &PromptEncoder, opening: &Opening) -> anyhow::Result<()> {
        let (conversation, tokens) = Conversation::begin(encoder, &self.content, opening)?;
        self.conversation = Some(conversation);
        self.max_tokens = opening.max_tokens;
        self.sequence = tokens.to_vec();
        self.prompt_tokens = tokens;
        Ok(())
    }

    /// Whether the environment has answered the reset.
    pub fn has_begun(&self) -> bool {
        self.conversation.is_some()
    }

    /// Turns that have ended.
    pub fn turns(&self) -> u32 {
        self.turns
    }

    /// Tokens drawn so far.
    pub fn tokens(&self) -> usize {
        self.drawn.tokens()
    }

    /// What the engine is asked for the next turn: a draw that depends on nothing but the place of the
    /// response, the turn and the tokens so far.
    ///
    /// # Errors
    /// Never, where the environment has left tokens to draw.
    pub fn request(&self, id: RolloutId) -> Result<TurnRequest, Invalid> {
        let left = self.max_tokens.saturating_sub(u32::try_from(self.tokens()).unwrap_or(u32::MAX));
        let sampling = if left >= self.sampling.max_new_tokens() {
            Arc::clone(&self.sampling)
        } else {
            let params = SamplingParams::from(self.sampling.as_ref().clone());
            Arc::new(Sampling::new(SamplingParams { max_new_tokens: left, ..params })?)
        };
        let prompt_tokens =
            if self.turns == 0 { Arc::clone(&self.prompt_tokens) } else { self.sequence.as_slice().into() };
        Ok(TurnRequest { prompt_tokens, sampling, seed: id.turn_seed(self.run_seed, self.turns) })
    }

    /// Takes what the policy drew in a turn.
    ///
    /// # Errors
    /// When the tokens have no text.
    pub fn drawn(&mut self, encoder: &PromptEncoder, turn: Finished) -> anyhow::Result<TurnText> {
        let conversation = self.conversation.as_mut().context("an episode draws before it has begun")?;
        let truncated = turn.finish_reason == FinishReason::Length;
        let drawn = turn.response_tokens;
        let endings = (encoder.tokenizer().eos_ids(), self.sampling.stop_token_ids());
        let is_ending = |token: &u32| endings.0.contains(token) || endings.1.contains(token);
        let written = match drawn.split_last() {
            Some((last, before)) if !truncated && is_ending(last) => before,
            _ => &drawn,
        };
        let text = conversation.said(encoder.tokenizer(), &self.sequence, &drawn, written)?;
        let tokens = u32::try_from(drawn.len())?;
        self.turns += 1;
        self.sequence.extend_from_slice(&drawn);
        self.drawn.draw(DrawnTurn {
            tokens: drawn,
            logprobs: turn.rollout_logprobs,
            surviving_mass: turn.surviving_mass,
            spans: turn.spans,
        });
        Ok(TurnText { text, tokens, truncated })
    }

    /// Takes what the environment says to the last turn; why no further turn can follow, if none can. The
    /// context holds so many tokens.
    ///
    /// # Errors
    /// When the tokenizer refuses the text.
    pub fn observe(
        &mut self,
        encoder: &PromptEncoder,
        context: usize,
        messages: &[EnvironmentMessage],
    ) -> anyhow::Result<Option<EpisodeEnd>> {
        let conversation = self.conversation.as_mut().context("an episode observes before it has begun")?;
        let Some(tokens) = conversation.go_on(encoder, &self.sequence, messages)? else {
            return Ok(Some(EpisodeEnd::Template));
        };
        if self.sequence.len() + tokens.len() >= context {
            return Ok(Some(EpisodeEnd::Context));
        }
        self.sequence.extend_from_slice(&tokens);
        self.drawn.give(&tokens);
        Ok(None)
    }

    /// What the environment says that it is worth so far, where it says so.
    pub fn is_worth(&mut self, reward: Option<f32>) {
        self.reward = reward;
    }

    /// The rollout that it is, over for this reason.
    pub fn finish(self, id: RolloutId, end: EpisodeEnd) -> RolloutParts {
        let finish_reason = if end.is_cut() { FinishReason::Length } else { FinishReason::Stop };
        self.drawn.into_rollout(id, self.prompt_tokens, finish_reason, self.reward)
    }

    /// Tokens that the policy was given between its turns.
    pub fn given_tokens(&self) -> usize {
        self.drawn.given_tokens()
    }
}
