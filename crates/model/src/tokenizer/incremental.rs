//! Text of a response while its tokens still come.

use super::{Error, Tokenizer};

/// Turns tokens into text one by one. A piece never ends inside a UTF-8 character, and the pieces put
/// together are the text of all tokens at once. (One exception: a byte-fallback decoder, as Llama 2's, turns
/// a whole run of byte tokens into replacement characters when any of it is invalid; characters that were
/// given out before the invalid byte came stay given out.)
///
/// A token's text depends on those before it (a character may be spread over several tokens; some decoders
/// strip the first space), so a window of tokens is decoded again each time. It begins at a place where the
/// text was complete, one step before the last such place, so that it always begins with text that was given
/// out.
#[derive(Debug, Clone)]
pub struct IncrementalDecoder {
    skip_special: bool,
    window: Vec<u32>,
    /// Tokens of the window up to which the text was last complete.
    complete: usize,
    /// Bytes of the window's text that were given out.
    given: usize,
}

impl IncrementalDecoder {
    /// A decoder at the beginning of a response.
    pub fn new(skip_special: bool) -> Self {
        Self { skip_special, window: Vec::new(), complete: 0, given: 0 }
    }

    /// The text that `token` completes; empty while a character is incomplete.
    ///
    /// # Errors
    /// When the library refuses the tokens.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> Result<String, Error> {
        self.window.push(token);
        let text = tokenizer.decode(&self.window, self.skip_special)?;
        // An incomplete character shows as replacement characters, until its last byte comes.
        let settled = text.trim_end_matches(char::REPLACEMENT_CHARACTER).len();
        let piece = text.get(self.given..settled).unwrap_or_default().to_owned();
        self.given = self.given.max(settled);
        if settled == text.len() && self.given == settled {
            self.shorten(tokenizer)?;
        }
        Ok(piece)
    }

    /// The rest: replacement characters for bytes that never became a character.
    ///
    /// # Errors
    /// When the library refuses the tokens.
    pub fn finish(self, tokenizer: &Tokenizer) -> Result<String, Error> {
        let text = tokenizer.decode(&self.window, self.skip_special)?;
        Ok(text.get(self.given..).unwrap_or_default().to_owned())
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
