//! What is wrong with the numbers a function was given. Nothing in this crate panics on data.

/// An input that a formula cannot take. The message names the argument, the place and the value.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// A slice does not have one element per token, per response or per pair.
    #[error("{what} has {found} elements, expected {expected}, one per {unit}")]
    Length {
        /// The argument, by its name in the call.
        what: &'static str,
        /// How many elements it has.
        found: usize,
        /// The length the other arguments imply.
        expected: usize,
        /// What one element stands for.
        unit: &'static str,
    },
    /// A number that counts is NaN or infinite.
    #[error("{what}[{index}] is {value}: every number that counts must be finite")]
    NotFinite {
        /// The argument, by its name in the call.
        what: &'static str,
        /// Where in it.
        index: usize,
        /// What stands there.
        value: f64,
    },
    /// A hyper-parameter or a count is outside its range.
    #[error("{name} is {value}, expected {expected}")]
    Parameter {
        /// The parameter, by its name in the configuration.
        name: &'static str,
        /// The value it was given.
        value: f64,
        /// The range, in words.
        expected: &'static str,
    },
}

/// `value` if `valid`, otherwise [`Error::Parameter`].
pub(crate) fn require(
    valid: bool,
    name: &'static str,
    value: f64,
    expected: &'static str,
) -> Result<(), Error> {
    if valid { Ok(()) } else { Err(Error::Parameter { name, value, expected }) }
}

/// A hyper-parameter that must be a finite number of zero or more.
pub(crate) fn require_non_negative(name: &'static str, value: f64) -> Result<(), Error> {
    require(value.is_finite() && value >= 0.0, name, value, "a finite number of 0 or more")
}

/// A hyper-parameter that must be a finite number above zero.
pub(crate) fn require_positive(name: &'static str, value: f64) -> Result<(), Error> {
    require(value.is_finite() && value > 0.0, name, value, "a positive number")
}

/// Checks that `values` has `expected` elements, all finite.
pub(crate) fn require_each(
    what: &'static str,
    values: &[f32],
    expected: usize,
    unit: &'static str,
) -> Result<(), Error> {
    if values.len() != expected {
        return Err(Error::Length { what, found: values.len(), expected, unit });
    }
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(Error::NotFinite { what, index, value: f64::from(values[index]) }),
        None => Ok(()),
    }
}
