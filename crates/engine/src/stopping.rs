//! Stop texts: they are looked for in the response's text, wherever the borders of its tokens lie.

use std::sync::Arc;

use model::tokenizer::{self, IncrementalDecoder, Tokenizer};
use types::Sampling;

use super::request::StopText;

/// Watches the text of one response for the stop texts of its request.
#[derive(Debug)]
pub(crate) struct StopMatcher {
    sampling: Arc<Sampling>,
    /// `None` before the first token.
    watched: Option<Watched>,
}

/// The text of a response so far.
#[derive(Debug)]
struct Watched {
    /// As it is shown: without special tokens.
    visible: Text,
    /// With special tokens, if a stop text has one in it.
    marked: Option<Marked>,
}

/// The text with its special tokens, which a reader does not see.
#[derive(Debug)]
struct Marked {
    text: Text,
    hidden: Vec<Hidden>,
}

/// A special token in the text.
#[derive(Debug, Clone, Copy)]
struct Hidden {
    /// Bytes in front of it.
    at: usize,
    bytes: usize,
}

/// The end of a text that grows.
#[derive(Debug)]
struct Text {
    decoder: IncrementalDecoder,
    /// The end, as long as a stop text could begin in it.
    tail: String,
    /// Bytes of the text in front of the tail.
    before: usize,
    /// Bytes of the text in which no stop text counts that ends there.
    exempt: usize,
}

impl StopMatcher {
    /// A matcher at the beginning of a response; `None` when the request has no stop text.
    pub(crate) fn new(sampling: &Arc<Sampling>) -> Option<Self> {
        let watched = None;
        (!sampling.stop().is_empty()).then(|| Self { sampling: Arc::clone(sampling), watched })
    }

    /// The stop text that `token` completes in a response to `prompt`: of several the one that begins first,
    /// of those the first in the request. One that ends here does not count unless `counts` says so.
    ///
    /// # Errors
    /// When the tokenizer cannot decode the tokens.
    pub(crate) fn push(
        &mut self,
        tokenizer: &Tokenizer,
        prompt: &[u32],
        token: u32,
        counts: bool,
    ) -> Result<Option<StopText>, tokenizer::Error> {
        let stops = self.sampling.stop();
        let watched = match &mut self.watched {
            Some(watched) => watched,
            place => place.insert(Watched::new(tokenizer, prompt, stops)?),
        };
        watched.visible.extend(tokenizer, token, counts)?;
        let in_visible = watched.visible.find(stops);
        let in_marked = match &mut watched.marked {
            Some(marked) => marked.push(tokenizer, token, stops, counts)?,
            None => None,
        };
        let found = [in_visible, in_marked].into_iter().flatten().min_by_key(|found| found.at);
        let longest = stops.iter().map(String::len).max().unwrap_or(0);
        watched.visible.forget(longest);
        if let Some(marked) = &mut watched.marked {
            marked.text.forget(longest);
        }
        Ok(found)
    }
}

impl Watched {
    fn new(tokenizer: &Tokenizer, prompt: &[u32], stops: &[String]) -> Result<Self, tokenizer::Error> {
        let is_marked = stops.iter().any(|stop| tokenizer.has_special(stop));
        let marked = is_marked.then(|| Marked::new(tokenizer, prompt)).transpose()?;
        Ok(Self { visible: Text::new(tokenizer, prompt, true)?, marked })
    }
}

impl Marked {
    fn new(tokenizer: &Tokenizer, prompt: &[u32]) -> Result<Self, tokenizer::Error> {
        Ok(Self { text: Text::new(tokenizer, prompt, false)?, hidden: Vec::new() })
    }

    fn push(
        &mut self,
        tokenizer: &Tokenizer,
        token: u32,
        stops: &[String],
        counts: bool,
    ) -> Result<Option<StopText>, tokenizer::Error> {
        self.text.extend(tokenizer, token, counts)?;
        if let Some(special) = tokenizer.special_text(token) {
            let at = self.text.len().saturating_sub(special.len());
            self.hidden.push(Hidden { at, bytes: special.len() });
        }
        let Some(StopText { text, at }) = self.text.find(stops) else { return Ok(None) };
        let hidden: usize = self.hidden.iter().filter(|special| special.at < at).map(|s| s.bytes).sum();
        Ok(Some(StopText { text, at: at.saturating_sub(hidden) }))
    }
}

impl Text {
    fn new(tokenizer: &Tokenizer, prompt: &[u32], skip_special: bool) -> Result<Self, tokenizer::Error> {
        let decoder = IncrementalDecoder::new(tokenizer, prompt, skip_special)?;
        Ok(Self { decoder, tail: String::new(), before: 0, exempt: 0 })
    }

    fn extend(&mut self, tokenizer: &Tokenizer, token: u32, counts: bool) -> Result<(), tokenizer::Error> {
        let piece = self.decoder.push(tokenizer, token)?;
        self.tail.push_str(&piece);
        if !counts {
            self.exempt = self.len();
        }
        Ok(())
    }

    fn len(&self) -> usize {
        self.before + self.tail.len()
    }

    /// The stop text that begins first, of those that count.
    fn find(&self, stops: &[String]) -> Option<StopText> {
        let found = stops.iter().filter_map(|text| Some((self.find_one(text)?, text)));
        let (at, text) = found.min_by_key(|(at, _)| *at)?;
        Some(StopText { text: text.clone(), at: self.before + at })
    }

    /// Where in the tail a stop text begins for the first time that ends behind what is exempt.
    fn find_one(&self, text: &str) -> Option<usize> {
        let first =
            if self.exempt == 0 { 0 } else { (self.exempt + 1).saturating_sub(self.before + text.len()) };
        let first = self.tail.ceil_char_boundary(first);
        Some(first + self.tail[first..].find(text)?)
    }

    /// Drops what no stop text can begin in any more.
    fn forget(&mut self, longest: usize) {
        let mut cut = self.tail.len().saturating_sub(longest.saturating_sub(1));
        while !self.tail.is_char_boundary(cut) {
            cut -= 1;
        }
        self.tail.drain(..cut);
        self.before += cut;
    }
}
