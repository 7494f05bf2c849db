//! One response: its tokens become text, piece by piece, and strings with log-probs.

use std::sync::Arc;

use engine::{StopText, TokenLogprob};
use model::tokenizer::Error;
use model::{IncrementalDecoder, Tokenizer};

/// A drawn token as clients see it.
#[derive(Debug)]
pub(crate) struct TokenText {
    /// What it adds to the response: the strings of all tokens put together are the text, with the special
    /// tokens that the text leaves out. Empty while a character is incomplete.
    pub(crate) spelled: Spelled,
    /// Characters of the text in front of it.
    pub(crate) offset: usize,
    /// The most probable tokens at its place.
    pub(crate) top: Vec<Spelled>,
}

/// A token with its log-prob.
#[derive(Debug, Clone)]
pub(crate) struct Spelled {
    pub(crate) text: String,
    /// The token's own bytes, a part of a character perhaps.
    pub(crate) bytes: Vec<u8>,
    pub(crate) logprob: f32,
}

/// A response whose tokens come one by one.
#[derive(Debug)]
pub(crate) struct Choice {
    prompt: Arc<[u32]>,
    decoder: IncrementalDecoder,
    text: String,
    /// Bytes of the text that were given out.
    sent: usize,
    /// Tokens that came.
    pushed: usize,
    /// Fewest tokens of the response: no stop text counts before.
    min_tokens: usize,
    /// Bytes of the text in which no stop text counts that ends there.
    exempt: usize,
    spelling: Option<Spelling>,
}

/// What the strings of tokens need.
#[derive(Debug)]
struct Spelling {
    /// Keeps special tokens.
    decoder: IncrementalDecoder,
    /// Characters of the text so far.
    characters: usize,
}

impl Choice {
    /// A response to a prompt, of whose tokens the strings are wanted or not.
    ///
    /// # Errors
    /// When the tokenizer refuses the prompt.
    pub(crate) fn new(tokenizer: &Tokenizer, prompt: Arc<[u32]>, logprobs: bool) -> Result<Self, Error> {
        let decoder = IncrementalDecoder::new(tokenizer, &prompt, true)?;
        let spelling = logprobs.then(|| IncrementalDecoder::new(tokenizer, &prompt, false)).transpose()?;
        let spelling = spelling.map(|decoder| Spelling { decoder, characters: 0 });
        let text = String::new();
        Ok(Self { prompt, decoder, text, sent: 0, pushed: 0, min_tokens: 0, exempt: 0, spelling })
    }

    /// The same in a response that does not end before so many tokens.
    pub(crate) fn with_min_tokens(self, min_tokens: usize) -> Self {
        Self { min_tokens, ..self }
    }

    /// Tokens that came.
    pub(crate) fn pushed(&self) -> usize {
        self.pushed
    }

    /// Takes the next token; its strings, if they are wanted.
    ///
    /// # Errors
    /// When the tokenizer refuses the tokens.
    pub(crate) fn push(
        &mut self,
        tokenizer: &Tokenizer,
        drawn: TokenLogprob,
        top: &[TokenLogprob],
    ) -> Result<Option<TokenText>, Error> {
        self.pushed += 1;
        let piece = self.decoder.push(tokenizer, drawn.token)?;
        self.text.push_str(&piece);
        if self.pushed < self.min_tokens {
            self.exempt = self.text.len();
        }
        let Some(spelling) = &mut self.spelling else { return Ok(None) };
        let token = spelling.token(tokenizer, drawn, top)?;
        spelling.characters += piece.chars().count();
        Ok(Some(token))
    }

    /// The text that no stop text can begin in any more, nor has begun in, and that was not given out yet.
    pub(crate) fn take(&mut self, stop: &[String]) -> &str {
        let from = self.sent;
        let longest = stop.iter().map(String::len).max().unwrap_or(0);
        let uncertain = self.text.len().saturating_sub(longest.saturating_sub(1)).max(from);
        let found = stop.iter().filter_map(|stop| self.find(stop, from)).min();
        let mut end = found.map_or(uncertain, |at| uncertain.min(at));
        while !self.text.is_char_boundary(end) {
            end -= 1;
        }
        self.sent = end;
        &self.text[from..end]
    }

    /// Where behind `from` a stop text begins for the first time that ends behind what is exempt.
    fn find(&self, stop: &str, from: usize) -> Option<usize> {
        let first = if self.exempt == 0 { 0 } else { (self.exempt + 1).saturating_sub(stop.len()) };
        let first = self.text.ceil_char_boundary(first.max(from));
        Some(first + self.text[first..].find(stop)?)
    }

    /// The whole response's text with its special tokens, but for one at its end; `None` where a stop text
    /// cut it.
    ///
    /// # Errors
    /// When the tokenizer refuses the tokens.
    pub(crate) fn marked(
        &self,
        tokenizer: &Tokenizer,
        response: &[u32],
        stop: Option<&StopText>,
    ) -> Result<Option<String>, Error> {
        if stop.is_some() {
            return Ok(None);
        }
        let ends = response.last().is_some_and(|last| tokenizer.eos_ids().contains(last));
        let inner = if ends { &response[..response.len() - 1] } else { response };
        tokenizer.response_text(&self.prompt, inner, false).map(Some)
    }

    /// The text of the whole response, up to the stop text.
    ///
    /// # Errors
    /// When the tokenizer refuses the tokens.
    pub(crate) fn whole(
        &self,
        tokenizer: &Tokenizer,
        response: &[u32],
        stop: Option<&StopText>,
    ) -> Result<String, Error> {
        let whole = tokenizer.response_text(&self.prompt, response, true)?;
        let shown = stop.map_or(whole.as_str(), |stop| stop.shown(&whole));
        Ok(shown.to_owned())
    }

    /// What of the whole text was not given out yet.
    pub(crate) fn unsent<'a>(&self, whole: &'a str) -> &'a str {
        whole.get(self.sent..).unwrap_or_default()
    }
}

impl Spelling {
    fn token(
        &mut self,
        tokenizer: &Tokenizer,
        drawn: TokenLogprob,
        top: &[TokenLogprob],
    ) -> Result<TokenText, Error> {
        let mut others = Vec::with_capacity(top.len());
        for entry in top.iter().filter(|entry| entry.token != drawn.token) {
            others.push(self.alternative(tokenizer, *entry)?);
        }
        let offset = self.characters;
        let text = self.decoder.push(tokenizer, drawn.token)?;
        let spelled = spelled(tokenizer, drawn, text);
        let place = top.iter().position(|entry| entry.token == drawn.token);
        if let Some(place) = place {
            others.insert(place, spelled.clone());
        }
        Ok(TokenText { spelled, offset, top: others })
    }

    /// A token that might have come. Several that are parts of characters are told apart by their bytes.
    fn alternative(&self, tokenizer: &Tokenizer, entry: TokenLogprob) -> Result<Spelled, Error> {
        let text = self.decoder.peek(tokenizer, entry.token)?;
        let mut spelled = spelled(tokenizer, entry, text);
        if spelled.text.is_empty() && !spelled.bytes.is_empty() {
            let bytes: String = spelled.bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
            spelled.text = format!("bytes:{bytes}");
        }
        Ok(spelled)
    }
}

fn spelled(tokenizer: &Tokenizer, entry: TokenLogprob, text: String) -> Spelled {
    let bytes = tokenizer.token_bytes(entry.token).unwrap_or_else(|| text.as_bytes().to_vec());
    Spelled { text, bytes, logprob: entry.logprob }
}
