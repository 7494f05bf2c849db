//! Stop texts: they are looked for in the response's text, wherever the borders of its tokens lie.

use std::sync::Arc;

use model::tokenizer::{self, IncrementalDecoder, Tokenizer};
use types::Sampling;

use super::request::StopText;

/// Watches the text of one response for the stop texts of its request.
#[derive(Debug)]
pub(crate) struct StopMatcher {
    sampling: Arc<Sampling>,
    decoder: IncrementalDecoder,
    /// The end of the text, as long as a stop text could begin in it.
    tail: String,
    /// Bytes of the text in front of the tail.
    before: usize,
}

impl StopMatcher {
    /// A matcher at the beginning of a response; `None` when the request has no stop text.
    pub(crate) fn new(sampling: &Arc<Sampling>) -> Option<Self> {
        (!sampling.stop().is_empty()).then(|| Self {
            sampling: Arc::clone(sampling),
            decoder: IncrementalDecoder::new(true),
            tail: String::new(),
            before: 0,
        })
    }

    /// The stop text that `token` completes: of several the one that begins first, of those the first in the
    /// request.
    ///
    /// # Errors
    /// When the tokenizer cannot decode the tokens.
    pub(crate) fn push(
        &mut self,
        tokenizer: &Tokenizer,
        token: u32,
    ) -> Result<Option<StopText>, tokenizer::Error> {
        let piece = self.decoder.push(tokenizer, token)?;
        if piece.is_empty() {
            return Ok(None);
        }
        self.tail.push_str(&piece);
        let found =
            self.sampling.stop().iter().filter_map(|text| Some((self.tail.find(text.as_str())?, text)));
        if let Some((at, text)) = found.min_by_key(|(at, _)| *at) {
            return Ok(Some(StopText { text: text.clone(), at: self.before + at }));
        }
        self.forget();
        Ok(None)
    }

    /// Drops what no stop text can begin in any more.
    fn forget(&mut self) {
        let longest = self.sampling.stop().iter().map(String::len).max().unwrap_or(0);
        let mut cut = self.tail.len().saturating_sub(longest.saturating_sub(1));
        while !self.tail.is_char_boundary(cut) {
            cut -= 1;
        }
        self.tail.drain(..cut);
        self.before += cut;
    }
}
