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
//! does not go on from these tokens; then a further sequence begins, whose prompt is the conversation as the
//! template writes it now, or the episode ends, as its environment says.

mod conversation;

use std::sync::Arc;

use anyhow::Context as _;
use types::link::environment::{EnvironmentMessage, OnRewrite};
use types::{
    DrawnTurn, EpisodeEnd, FinishReason, Invalid, MAX_SEQUENCE_TOKENS, PromptContent, RolloutId,
    RolloutParts, Sampling, SamplingParams, Turns,
};

use crate::{Finished, PromptEncoder};
use conversation::{Conversation, Further};

/// What an environment says before the first turn.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Opening {
    /// Its words behind the prompt.
    pub messages: Vec<EnvironmentMessage>,
    /// The schemas of the tools that the policy may call, as a JSON list.
    pub tools: Option<String>,
    /// Most tokens that the policy may draw in all turns.
    pub max_tokens: u32,
    /// What becomes of it where the chat template rewrites what came before.
    pub on_rewrite: OnRewrite,
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
    on_rewrite: OnRewrite,
    /// `None` before it has begun.
    conversation: Option<Conversation>,
    prompt_tokens: Arc<[u32]>,
    /// Prompt, turns and observations of the sequence under way: what the next turn goes on from.
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
            on_rewrite: OnRewrite::default(),
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
        self.on_rewrite = opening.on_rewrite;
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
        match conversation.go_on(encoder, &self.sequence, messages)? {
            Further::Behind(tokens) => {
                if self.sequence.len() + tokens.len() >= context {
                    return Ok(Some(EpisodeEnd::Context));
                }
                self.sequence.extend_from_slice(&tokens);
                self.drawn.give(&tokens);
            }
            Further::Anew(tokens) if self.on_rewrite == OnRewrite::Split => {
                // A rollout holds no more than so many tokens that were given.
                let is_too_much = self.drawn.given_tokens() + tokens.len() > MAX_SEQUENCE_TOKENS;
                if tokens.len() >= context || is_too_much {
                    return Ok(Some(EpisodeEnd::Context));
                }
                self.drawn.begin_sequence(&tokens);
                self.sequence = tokens;
            }
            Further::Anew(_) | Further::Nowhere => return Ok(Some(EpisodeEnd::Template)),
        }
        Ok(None)
    }

    /// What the environment says that it is worth so far, where it says so.
    pub fn is_worth(&mut self, reward: Option<f32>) {
        let of_turn = f64::from(reward.unwrap_or(0.0)) - f64::from(self.reward.unwrap_or(0.0));
        self.drawn.earn(of_turn as f32);
        self.reward = reward;
    }

    /// The rollout that it is, over for this reason.
    pub fn finish(self, id: RolloutId, end: EpisodeEnd) -> RolloutParts {
        let finish_reason = if end.is_cut() { FinishReason::Length } else { FinishReason::Stop };
        self.drawn.into_rollout(id, self.prompt_tokens, finish_reason, self.reward)
    }

    /// Sequences in which it drew behind the first.
    pub fn further_sequences(&self) -> usize {
        self.drawn.further_sequences()
    }

    /// Tokens that the policy was given between its turns.
    pub fn given_tokens(&self) -> usize {
        self.drawn.given_tokens()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use model::{ChatTemplate, SpecialTokens};
    use types::link::environment::Speaker;
    use types::{PolicyVersion, PromptId, Rollout, Span};

    use super::*;

    /// Shows of the policy's earlier turns what stands behind their thoughts, and opens the thoughts of the
    /// next one, as Qwen3's does in front of a user's message.
    const THINKING: &str = "{% for m in messages %}<{{ m.role }}>\
        {% if m.role == 'assistant' %}{{ m.content.split('</think>')[-1] }}\
        {% else %}{{ m.content }}{% endif %}<end>{% endfor %}\
        {% if add_generation_prompt %}<assistant>{% endif %}";

    fn encoder(template: &str) -> PromptEncoder {
        let special = SpecialTokens { eos: Some("<end>".to_owned()), ..SpecialTokens::default() };
        let tokenizer = model::tokenizer::train_bpe(std::iter::empty::<&str>(), 260, &special).unwrap();
        let template = ChatTemplate::new(template, BTreeMap::new()).unwrap();
        PromptEncoder::new(Arc::new(tokenizer), Some(template))
    }

    fn tokens_of(encoder: &PromptEncoder, text: &str) -> Vec<u32> {
        encoder.tokenizer().encode(text, false).unwrap()
    }

    /// A turn with this text, drawn by a version.
    fn turn(encoder: &PromptEncoder, text: &str, version: u64) -> Finished {
        let response_tokens = tokens_of(encoder, text);
        let tokens = u32::try_from(response_tokens.len()).unwrap().try_into().unwrap();
        Finished {
            id: 0,
            rollout_logprobs: vec![-0.5; response_tokens.len()],
            response_tokens,
            surviving_mass: None,
            top_logprobs: Vec::new(),
            spans: vec![Span { version: PolicyVersion(version), tokens }],
            cache_spans: Vec::new(),
            finish_reason: FinishReason::Stop,
            stop_text: None,
        }
    }

    fn says(text: &str) -> [EnvironmentMessage; 1] {
        [EnvironmentMessage { speaker: Speaker::User, text: text.to_owned() }]
    }

    fn id() -> RolloutId {
        RolloutId { prompt: PromptId { epoch: 0, ordinal: 3 }, sibling: 1, attempt: 0 }
    }

    fn begun(encoder: &PromptEncoder, on_rewrite: OnRewrite) -> Episode {
        let content = PromptContent::Messages(r#"[{"role": "user", "content": "6*7?"}]"#.to_owned());
        let sampling = SamplingParams { max_new_tokens: 50, ..SamplingParams::default() };
        let mut episode = Episode::new(content, Arc::new(sampling.try_into().unwrap()), 9);
        let opening = Opening { max_tokens: 60, on_rewrite, ..Opening::default() };
        episode.begin(encoder, &opening).unwrap();
        episode
    }

    #[test]
    fn where_a_template_drops_thoughts_a_further_sequence_begins_with_what_it_writes() {
        let encoder = encoder(THINKING);
        let mut episode = begun(&encoder, OnRewrite::Split);
        let prompt = tokens_of(&encoder, "<user>6*7?<end><assistant>");
        assert_eq!(*episode.request(id()).unwrap().prompt_tokens, prompt);
        let thought = "hm</think>41<end>";
        let text = episode.drawn(&encoder, turn(&encoder, thought, 4)).unwrap().text;
        assert_eq!(text, "hm</think>41");
        assert_eq!(episode.observe(&encoder, 200, &says("no")).unwrap(), None);
        let anew = tokens_of(&encoder, "<user>6*7?<end><assistant>41<end><user>no<end><assistant>");
        let request = episode.request(id()).unwrap();
        assert_eq!(*request.prompt_tokens, anew, "what the policy is given where it is served");
        assert_eq!(request.seed, id().turn_seed(9, 1));
        let left = 60 - u32::try_from(tokens_of(&encoder, thought).len()).unwrap();
        assert_eq!(request.sampling.max_new_tokens(), left, "the bound is of all sequences");
        // Without thoughts the template has nothing to drop, and what it writes goes on from the tokens.
        episode.drawn(&encoder, turn(&encoder, "42<end>", 3)).unwrap();
        assert_eq!(episode.observe(&encoder, 200, &says("sure?")).unwrap(), None);
        let behind = tokens_of(&encoder, "<user>sure?<end><assistant>");
        let request = episode.request(id()).unwrap();
        assert_eq!(*request.prompt_tokens, [&anew[..], &tokens_of(&encoder, "42<end>"), &behind].concat());
        episode.drawn(&encoder, turn(&encoder, "yes<end>", 4)).unwrap();
        assert_eq!((episode.further_sequences(), episode.turns()), (1, 3));
        episode.is_worth(Some(0.5));
        let rollout = Rollout::new(episode.finish(id(), EpisodeEnd::Finished)).unwrap();
        let drawn = ["hm</think>41<end>", "42<end>", "yes<end>"].map(|text| tokens_of(&encoder, text));
        let first = [&prompt[..], &drawn[0]].concat();
        let second = [&anew[..], &drawn[1], &behind, &drawn[2]].concat();
        assert_eq!(rollout.sequence(), [first.as_slice(), &second].concat());
        assert_eq!(rollout.beginnings(), [first.len()]);
        assert_eq!(rollout.response_tokens(), drawn.concat());
        assert_eq!(rollout.given_tokens(), anew.len() + behind.len());
        assert_eq!(rollout.reward(), Some(0.5));
    }

    #[test]
    fn such_an_episode_ends_where_that_is_wanted_or_its_prompt_has_no_room() {
        let encoder = encoder(THINKING);
        let mut episode = begun(&encoder, OnRewrite::End);
        episode.drawn(&encoder, turn(&encoder, "hm</think>41<end>", 4)).unwrap();
        let end = episode.observe(&encoder, 200, &says("no")).unwrap();
        assert_eq!(end, Some(EpisodeEnd::Template));
        let rollout = Rollout::new(episode.finish(id(), EpisodeEnd::Template)).unwrap();
        assert_eq!((rollout.observations().len(), rollout.finish_reason()), (0, FinishReason::Length));
        let anew = tokens_of(&encoder, "<user>6*7?<end><assistant>41<end><user>no<end><assistant>").len();
        for (context, end) in [(anew, Some(EpisodeEnd::Context)), (anew + 1, None)] {
            let mut episode = begun(&encoder, OnRewrite::Split);
            episode.drawn(&encoder, turn(&encoder, "hm</think>41<end>", 4)).unwrap();
            assert_eq!(episode.observe(&encoder, context, &says("no")).unwrap(), end);
        }
    }

    #[test]
    fn a_template_that_refuses_what_is_said_ends_the_episode() {
        let template = "{% if messages|length > 1 %}{{ raise_exception('no more') }}{% endif %}go";
        let encoder = encoder(template);
        let mut episode = begun(&encoder, OnRewrite::Split);
        episode.drawn(&encoder, turn(&encoder, "41<end>", 4)).unwrap();
        assert_eq!(episode.observe(&encoder, 200, &says("no")).unwrap(), Some(EpisodeEnd::Template));
    }
}
