//! The text of a response, and the tokens of a text as a response (`docs/decisions.md`, D21).
//!
//! A token's text depends on what stands before it: decoders in the manner of SentencePiece drop the space
//! in front of the first word of a sequence, and their encoders put one there. A response decoded, or
//! encoded, by itself would lose a space, or gain one.

use super::{Error, Tokenizer};

/// Tokens of a prompt that are decoded along with a response at first.
const TAIL_TOKENS: usize = 16;
/// Text before a response that is encoded by itself, so that it does not begin a sequence.
const ANCHOR: &str = "\n";

impl Tokenizer {
    /// The text of `response` behind `prompt`: the text of both without that of the prompt. Characters that
    /// begin in the prompt and end in the response belong to the response.
    ///
    /// # Errors
    /// When the library refuses the tokens.
    pub fn response_text(
        &self,
        prompt: &[u32],
        response: &[u32],
        skip_special: bool,
    ) -> Result<String, Error> {
        let tail = self.tail(prompt, skip_special)?;
        let before = self.decode(tail, skip_special)?;
        let whole = self.decode(&[tail, response].concat(), skip_special)?;
        Ok(behind(&before, &whole).to_owned())
    }

    /// The tokens of `text` as a response to `prompt`: those whose [`response_text`](Self::response_text) is
    /// the text, where the tokenizer has such. Special tokens written out in it become their ids; none is
    /// added.
    ///
    /// # Errors
    /// When the library refuses the text or the tokens.
    pub fn encode_response(&self, prompt: &[u32], text: &str) -> Result<Vec<u32>, Error> {
        let alone = self.encode(text, false)?;
        if self.response_text(prompt, &alone, false)? == text {
            return Ok(alone);
        }
        let anchor = self.encode(ANCHOR, false)?;
        let anchored = self.encode(&format!("{ANCHOR}{text}"), false)?;
        match anchored.strip_prefix(anchor.as_slice()) {
            Some(tokens) if self.response_text(prompt, tokens, false)? == text => Ok(tokens.to_vec()),
            // A tokenizer that changes texts, by lower case say.
            _ => Ok(alone),
        }
    }

    /// As many of the last tokens of a prompt as a response's text can depend on: they have text, and do not
    /// begin inside a character.
    pub(super) fn tail<'a>(&self, prompt: &'a [u32], skip_special: bool) -> Result<&'a [u32], Error> {
        let mut length = TAIL_TOKENS;
        loop {
            let tail = &prompt[prompt.len().saturating_sub(length)..];
            if tail.len() == prompt.len() {
                return Ok(tail);
            }
            let text = self.decode(tail, skip_special)?;
            if !text.is_empty() && !text.starts_with(char::REPLACEMENT_CHARACTER) {
                return Ok(tail);
            }
            length *= 4;
        }
    }
}

/// What `whole` has behind `before`, of which it may change an incomplete character at the end.
fn behind<'a>(before: &str, whole: &'a str) -> &'a str {
    if let Some(rest) = whole.strip_prefix(before) {
        return rest;
    }
    let settled = before.trim_end_matches(char::REPLACEMENT_CHARACTER);
    let shared = settled.chars().zip(whole.chars()).take_while(|(one, other)| one == other);
    let bytes: usize = shared.map(|(one, _)| one.len_utf8()).sum();
    &whole[bytes..]
}
