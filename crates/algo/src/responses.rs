//! The view every function on tokens takes: how a flat slice divides into responses, and which of its tokens
//! count.
//!
//! Invariants: the lengths add up to the number of tokens; a token that does not count is never read, so
//! whatever stands there (also NaN) cannot reach a loss, a gradient or a metric.

use std::ops::Range;

use crate::error::{Error, require, require_each};

/// A limit that turns a corrupt length into an error instead of an allocation.
const MAX_TOKENS: usize = 1 << 32;

/// The response tokens of a batch, packed one response after the other without padding.
///
/// Tokens of the prompt are not part of it. Tokens inside a response that the policy did not choose
/// (observations of a tool, for example) are, and the mask marks them as not counting.
#[derive(Debug, Clone, Copy)]
pub struct Responses<'a> {
    lengths: &'a [usize],
    mask: Option<&'a [bool]>,
    turn_ends: Option<&'a [bool]>,
    tokens: usize,
}

impl<'a> Responses<'a> {
    /// Responses of these lengths (tokens each) whose tokens all count. A length of zero is allowed.
    ///
    /// # Errors
    /// More than 2^32 tokens, which no batch has.
    pub fn new(lengths: &'a [usize]) -> Result<Self, Error> {
        let tokens = lengths.iter().fold(0_usize, |total, &length| total.saturating_add(length));
        require(tokens <= MAX_TOKENS, "tokens", tokens as f64, "at most 2^32 in a batch")?;
        Ok(Self { lengths, mask: None, turn_ends: None, tokens })
    }

    /// The same responses with a response mask: `true` on tokens that count. `mask` is `[tokens]`.
    ///
    /// # Errors
    /// [`Error::Length`] if the mask does not have one element per token.
    pub fn with_mask(self, mask: &'a [bool]) -> Result<Self, Error> {
        self.require_len("mask", mask.len())?;
        Ok(Self { mask: Some(mask), ..self })
    }

    /// The same responses with the ends of their turns: `true` on the last token of each. `turn_ends` is
    /// `[tokens]`.
    ///
    /// # Errors
    /// [`Error::Length`] if there is not one element per token.
    pub fn with_turn_ends(self, turn_ends: &'a [bool]) -> Result<Self, Error> {
        self.require_len("turn_ends", turn_ends.len())?;
        Ok(Self { turn_ends: Some(turn_ends), ..self })
    }

    /// Whether a turn ends with this token; never where nothing is known of turns.
    pub(crate) fn ends_turn(&self, token: usize) -> bool {
        self.turn_ends.is_some_and(|ends| ends[token])
    }

    /// Number of tokens, counting or not.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Number of responses.
    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Whether there is no response at all.
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// The places of each response, in order.
    pub fn spans(&self) -> impl Iterator<Item = Range<usize>> + 'a {
        self.lengths.iter().scan(0, |start, &length| {
            let span = *start..*start + length;
            *start = span.end;
            Some(span)
        })
    }

    /// The places inside `span` that count, in order.
    pub fn counted(&self, span: Range<usize>) -> impl DoubleEndedIterator<Item = usize> + use<'a> {
        let mask = self.mask;
        span.filter(move |&token| mask.is_none_or(|mask| mask[token]))
    }

    /// All places that count, in order.
    pub fn counted_tokens(&self) -> impl DoubleEndedIterator<Item = usize> + use<'a> {
        self.counted(0..self.tokens)
    }

    pub(crate) fn require_len(&self, what: &'static str, found: usize) -> Result<(), Error> {
        if found == self.tokens {
            Ok(())
        } else {
            Err(Error::Length { what, found, expected: self.tokens, unit: "token" })
        }
    }

    /// Checks a `[tokens]` slice: its length, and that every number that counts is finite.
    pub(crate) fn require_tokens(&self, what: &'static str, values: &[f32]) -> Result<(), Error> {
        self.require_len(what, values.len())?;
        match self.counted_tokens().find(|&token| !values[token].is_finite()) {
            Some(index) => Err(Error::NotFinite { what, index, value: f64::from(values[index]) }),
            None => Ok(()),
        }
    }

    /// Checks a `[responses]` slice: its length, and that every number is finite.
    pub(crate) fn require_responses(&self, what: &'static str, values: &[f32]) -> Result<(), Error> {
        require_each(what, values, self.len(), "response")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_cover_the_slice_and_skip_nothing() {
        let responses = Responses::new(&[2, 0, 3]).unwrap();
        assert_eq!(responses.spans().collect::<Vec<_>>(), [0..2, 2..2, 2..5]);
        assert_eq!((responses.len(), responses.tokens(), responses.is_empty()), (3, 5, false));
        assert!(Responses::new(&[]).unwrap().is_empty());
    }

    #[test]
    fn only_counted_tokens_are_checked() {
        let mask = [true, false, true];
        let responses = Responses::new(&[3]).unwrap().with_mask(&mask).unwrap();
        assert_eq!(responses.counted_tokens().collect::<Vec<_>>(), [0, 2]);
        assert_eq!(responses.require_tokens("logprobs", &[0.0, f32::NAN, 1.0]), Ok(()));
        let error = responses.require_tokens("logprobs", &[0.0, 0.0, f32::INFINITY]).unwrap_err();
        assert_eq!(error.to_string(), "logprobs[2] is inf: every number that counts must be finite");
    }

    #[test]
    fn lengths_that_do_not_fit_are_an_error_and_not_a_panic() {
        let error = Responses::new(&[usize::MAX, 2]).unwrap_err();
        assert!(
            error.to_string().starts_with("tokens is 18446744073709552000, expected at most 2^32"),
            "{error}"
        );
        let error = Responses::new(&[3]).unwrap().require_tokens("logprobs", &[0.0]).unwrap_err();
        assert_eq!(error.to_string(), "logprobs has 1 elements, expected 3, one per token");
        assert!(Responses::new(&[2]).unwrap().with_mask(&[true]).is_err());
    }
}
