//! Text of a response while its tokens still come.

use super::{Error, Tokenizer};

/// Turns tokens into text one by one. A piece never ends inside a UTF-8 character, and the pieces put
/// together are the text of all tokens at once ([`Tokenizer::response_text`]). (One exception: a
/// byte-fallback decoder, as Llama 2's, turns a whole run of byte tokens into replacement characters when any
/// of it is invalid; characters that were given out before the invalid byte came stay given out.)
///
/// A token's text depends on those before it (a character may be spread over several tokens; some decoders
/// strip the first space), so a window of tokens is decoded again each time, which begins in the prompt. It
/// begins at a place where the text was complete, one step before the last such place, so that it always
/// begins with text that was given out.
#[derive(Debug, Clone)]
pub struct IncrementalDecoder {
    skip_special: bool,
    window: Vec<u32>,
    /// Tokens of the window up to which the text was last complete.
    complete: usize,
    /// Bytes of the window's text that were given out, or are the prompt's.
    given: usize,
    /// The window's text at the end of the prompt, while a character of it is incomplete.
    unfinished: Option<String>,
}

impl IncrementalDecoder {
    /// A decoder at the beginning of a response to `prompt`.
    ///
    /// # Errors
    /// When the library refuses the tokens.
    pub fn new(tokenizer: &Tokenizer, prompt: &[u32], skip_special: bool) -> Result<Self, Error> {
        let window = tokenizer.tail(prompt, skip_special)?.to_vec();
        let text = tokenizer.decode(&window, skip_special)?;
        let given = settled(&text);
        let is_complete = given == text.len();
        let complete = if is_complete { window.len() } else { 0 };
        let unfinished = (!is_complete).then_some(text);
        Ok(Self { skip_special, window, complete, given, unfinished })
    }

    /// The text that `token` completes; empty while a character is incomplete.
    ///
    /// # Errors
    /// When the library refuses the tokens.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> Result<String, Error> {
        self.window.push(token);
        let text = tokenizer.decode(&self.window, self.skip_special)?;
        let settled = settled(&text);
        self.leave_prompt(&text, settled);
        let piece = text.get(self.given..settled).unwrap_or_default().to_owned();
        self.given = self.given.max(settled);
        if settled == text.len() && self.given == settled {
            self.shorten(tokenizer)?;
        }
        Ok(piece)
    }

    /// The text that `token` would complete.
    ///
    /// # Errors
    /// When the library refuses the tokens.
    pub fn peek(&self, tokenizer: &Tokenizer, token: u32) -> Result<String, Error> {
        self.clone().push(tokenizer, token)
    }

    /// The rest: replacement characters for bytes that never became a character.
    ///
    /// # Errors
    /// When the library refuses the tokens.
    pub fn finish(mut self, tokenizer: &Tokenizer) -> Result<String, Error> {
        let text = tokenizer.decode(&self.window, self.skip_special)?;
        self.leave_prompt(&text, text.len());
        Ok(text.get(self.given..).unwrap_or_default().to_owned())
    }

    /// What the prompt has left of a character is the prompt's, unless the response completes the character.
    fn leave_prompt(&mut self, text: &str, settled: usize) {
        let Some(prompt) = &self.unfinished else { return };
        let is_prompts = text.starts_with(prompt.as_str());
        if is_prompts && settled >= prompt.len() {
            self.given = prompt.len();
            self.unfinished = None;
        } else if !is_prompts && settled > self.given {
            self.unfinished = None;
        }
    }

    /// Drops the tokens before the last place where the text was complete. The text is complete now.
    fn shorten(&mut self, tokenizer: &Tokenizer) -> Result<(), Error> {
        let recent = tokenizer.decode(&self.window[self.complete..], self.skip_special)?;
        if !recent.is_empty() {
            self.window.drain(..self.complete);
            self.given = recent.len();
        }
        self.complete = self.window.len();
        Ok(())
    }
}

/// Bytes of a text without an incomplete character at its end, which shows as replacement characters until
/// its last byte comes.
fn settled(text: &str) -> usize {
    text.trim_end_matches(char::REPLACEMENT_CHARACTER).len()
}
