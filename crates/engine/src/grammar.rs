//! Responses that follow a grammar: JSON by a schema, a regular expression, one of some texts, or a
//! context-free grammar (structured outputs). What may be drawn next is asked of `llguidance`, whose grammars
//! are of bytes, wherever the borders of tokens lie.
//!
//! A token that the grammar does not allow has no chance; log-probs stay those of the whole distribution, and
//! the mass of what was allowed is recorded beside them, as with any truncation. A response may end only
//! where its grammar may.

use std::fmt;
use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use model::Tokenizer;

/// Longest source of a grammar, in bytes.
const MAX_SOURCE_BYTES: usize = 256 << 10;

/// What a response has to look like.
#[derive(Debug, Clone, PartialEq)]
pub enum GrammarSource {
    /// JSON that this schema describes.
    JsonSchema(serde_json::Value),
    /// Text that this regular expression matches from its beginning to its end.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A context-free grammar in llguidance's variant of Lark's syntax.
    Lark(String),
}

impl GrammarSource {
    /// Any JSON object.
    pub fn json_object() -> Self {
        Self::JsonSchema(serde_json::json!({"type": "object"}))
    }

    fn bytes(&self) -> usize {
        match self {
            Self::JsonSchema(schema) => schema.to_string().len(),
            Self::Regex(text) | Self::Lark(text) => text.len(),
            Self::Choice(texts) => texts.iter().map(String::len).sum(),
        }
    }

    fn grammar(&self) -> TopLevelGrammar {
        match self {
            Self::JsonSchema(schema) => TopLevelGrammar::from_json_schema(schema.clone()),
            Self::Regex(pattern) => TopLevelGrammar::from_regex(pattern),
            Self::Choice(texts) => {
                let quoted = texts.iter().map(|text| serde_json::Value::from(text.as_str()).to_string());
                let alternatives: Vec<String> = quoted.collect();
                TopLevelGrammar::from_lark(format!("start: {}", alternatives.join(" | ")))
            }
            Self::Lark(source) => TopLevelGrammar::from_lark(source.clone()),
        }
    }
}

/// A grammar that cannot be followed, as one sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct GrammarError(pub String);

/// Makes grammars for the tokens of a vocabulary.
pub struct GrammarCompiler {
    factory: ParserFactory,
    tokens: usize,
}

/// A grammar for the tokens of a vocabulary. A cheap clone.
#[derive(Clone)]
pub struct Grammar {
    /// At the beginning of a response.
    matcher: Arc<Matcher>,
    /// The token that stands for the end of a response, behind those of the vocabulary.
    end: usize,
}

impl fmt::Debug for GrammarCompiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrammarCompiler").field("tokens", &self.tokens).finish_non_exhaustive()
    }
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammar").field("tokens", &self.end).finish_non_exhaustive()
    }
}

impl GrammarCompiler {
    /// For the tokens of a tokenizer: a tenth of a second for a large one.
    ///
    /// # Errors
    /// A tokenizer that llguidance cannot work with.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self, GrammarError> {
        let tokens = tokenizer.vocab_size();
        let mut words = Vec::with_capacity(tokens + 1);
        for id in 0..u32::try_from(tokens).unwrap_or(u32::MAX) {
            words.push(bytes_of(tokenizer, id));
        }
        // Which tokens end a response is the request's matter: one of our own stands for all of them.
        words.push(special(b"<end of the response>"));
        let count =
            u32::try_from(words.len()).map_err(|_| GrammarError("too large a vocabulary".to_owned()))?;
        let trie = TokTrie::from(&TokRxInfo::new(count, count - 1), &words);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&environment).map_err(|error| told(&error))?;
        factory.quiet().limits_mut().verbose_errors = false;
        Ok(Self { factory, tokens })
    }

    /// A grammar of this source.
    ///
    /// # Errors
    /// What is wrong with it, or that it is too large.
    pub fn compile(&self, source: &GrammarSource) -> Result<Grammar, GrammarError> {
        let bytes = source.bytes();
        if bytes > MAX_SOURCE_BYTES {
            return Err(GrammarError(format!("it has {bytes} bytes, must have at most {MAX_SOURCE_BYTES}")));
        }
        let matcher = Matcher::new(self.factory.create_parser(source.grammar()));
        match matcher.get_error() {
            Some(problem) => Err(GrammarError(first_line(&problem))),
            None => Ok(Grammar { matcher: Arc::new(matcher), end: self.tokens }),
        }
    }
}

/// Where a response stands in its grammar. A clone goes on by itself.
pub(crate) struct GrammarState {
    matcher: Matcher,
    end: usize,
    /// The tokens that end a response, wherever its grammar may end.
    endings: Vec<u32>,
    /// Which tokens may come next: bit `t % 32` of word `t / 32` stands for token `t`.
    mask: Vec<u32>,
}

/// What may come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// One of the tokens of the mask.
    Token,
    /// Nothing: the response is complete, and no token ends it.
    Nothing,
}

impl fmt::Debug for GrammarState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrammarState").field("tokens", &self.end).finish_non_exhaustive()
    }
}

impl Clone for GrammarState {
    fn clone(&self) -> Self {
        let Self { matcher, end, endings, mask } = self;
        Self { matcher: matcher.deep_clone(), end: *end, endings: endings.clone(), mask: mask.clone() }
    }
}

impl GrammarState {
    /// At the beginning of a response that one of `endings` ends, by a model of so many tokens.
    ///
    /// # Errors
    /// Where no token can begin it.
    pub(crate) fn new(grammar: &Grammar, vocab_size: usize, endings: &[u32]) -> Result<Self, GrammarError> {
        let mut state = Self {
            matcher: grammar.matcher.deep_clone(),
            end: grammar.end,
            endings: endings.to_vec(),
            mask: vec![0; vocab_size.div_ceil(32)],
        };
        state.look_ahead()?;
        Ok(state)
    }

    /// The tokens that may come next.
    pub(crate) fn mask(&self) -> &[u32] {
        &self.mask
    }

    /// A token that does not end the response was drawn.
    ///
    /// # Errors
    /// Where the vocabulary has no token that could follow, or the parser has reached its limits.
    pub(crate) fn push(&mut self, token: u32) -> Result<Next, GrammarError> {
        self.matcher.consume_token(token).map_err(|error| told(&error))?;
        self.look_ahead()
    }

    fn look_ahead(&mut self) -> Result<Next, GrammarError> {
        let allowed = self.matcher.compute_mask_or_eos().map_err(|error| told(&error))?;
        self.mask.fill(0);
        for (word, found) in self.mask.iter_mut().zip(allowed.as_slice()) {
            *word = *found;
        }
        let may_end = self.end < allowed.len() && allowed.get(self.end);
        self.set(self.end, false);
        for place in 0..self.endings.len() {
            self.set(self.endings[place] as usize, may_end);
        }
        match (self.mask.iter().any(|word| *word != 0), may_end) {
            (true, _) => Ok(Next::Token),
            (false, true) => Ok(Next::Nothing),
            (false, false) => Err(GrammarError("no token of the vocabulary can follow".to_owned())),
        }
    }

    fn set(&mut self, token: usize, is_allowed: bool) {
        let Some(word) = self.mask.get_mut(token / 32) else { return };
        let bit = 1 << (token % 32);
        *word = if is_allowed { *word | bit } else { *word & !bit };
    }
}

/// What a token writes. A special token writes nothing that a grammar of bytes has.
fn bytes_of(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    if let Some(text) = tokenizer.special_text(id) {
        return special(text.as_bytes());
    }
    let spelled = tokenizer.token_bytes(id);
    // Where they depend on what stands beside it, those in the middle of a text.
    spelled.or_else(|| Some(tokenizer.token(id)?.replace('\u{2581}', " ").into_bytes())).unwrap_or_default()
}

fn special(text: &[u8]) -> Vec<u8> {
    [&[TokTrie::SPECIAL_TOKEN_MARKER], text].concat()
}

fn told(error: &anyhow::Error) -> GrammarError {
    GrammarError(first_line(&format!("{error:#}")))
}

fn first_line(problem: &str) -> String {
    problem.lines().next().unwrap_or_default().trim().to_owned()
}
