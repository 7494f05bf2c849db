//! The tokenizer of a folder and what it needs for chats.

use std::path::Path;

use model::{ChatTemplate, Tokenizer};

use crate::disk::FileError;
use crate::error::{Error, Result};

/// What turns the text of examples into tokens.
#[derive(Debug)]
pub(crate) struct TextEncoder {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) template: Option<ChatTemplate>,
    /// Appended to responses given as text.
    pub(crate) eos: Option<u32>,
}

impl TextEncoder {
    /// That of a folder; `None` where it has no tokenizer, which data of tokens does not need.
    ///
    /// # Errors
    /// A folder that cannot be opened, a tokenizer or template that cannot be used, an end-of-sequence token
    /// that is to be appended and is not named.
    pub(crate) fn load(folder: &Path, append_eos: bool) -> Result<Option<Self>> {
        // A folder that is not there is to be named, not taken for one of a model without a tokenizer.
        std::fs::read_dir(folder).map_err(FileError::on("open folder", folder))?;
        if !folder.join("tokenizer.json").is_file() {
            return Ok(None);
        }
        let tokenizer = Tokenizer::load(folder)?;
        let template = ChatTemplate::load(folder, tokenizer.special().clone())?;
        let eos = append_eos.then(|| tokenizer.eos_ids().first().copied()).flatten();
        if append_eos && eos.is_none() {
            let problem = format!(
                "training.append_eos is true, but {} names no end-of-sequence token",
                folder.display()
            );
            return Err(Error::Config { problems: vec![problem] });
        }
        Ok(Some(Self { tokenizer, template, eos }))
    }

    /// A turn of the assistant up to the end that the template writes, which ends the policy's turn: what
    /// stands behind it (a line break, say) is never drawn.
    pub(crate) fn through_end<'t>(&self, turn: &'t str) -> &'t str {
        let ids = self.tokenizer.eos_ids().iter();
        let ends = ids.filter_map(|id| self.tokenizer.special_text(*id));
        let end = ends.filter_map(|end| Some(turn.rfind(end)? + end.len())).max();
        &turn[..end.unwrap_or(turn.len())]
    }

    /// Ends a response with the end-of-sequence token, if it is to and does not already.
    pub(crate) fn end_once(&self, tokens: &mut Vec<u32>) {
        if !tokens.last().is_some_and(|last| self.tokenizer.eos_ids().contains(last)) {
            tokens.extend(self.eos);
        }
    }
}
