//! Torch's refusals as errors.
//!
//! The network's functions are operators that panic where torch refuses. On a GPU a refusal is no bug: memory
//! may run out in any operator.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use tch::TchError;

use crate::Error;

/// Runs operators; a refusal of torch becomes an error, any other panic goes on. What they worked on must not
/// be used again after an error.
pub(crate) fn caught<T>(run: impl FnOnce() -> T) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(run)).or_else(|panic| match refusal(panic.as_ref()) {
        Some(message) => Err(Error::Torch(TchError::Torch(message))),
        None => resume_unwind(panic),
    })
}

/// Torch's message, without the stack that follows it, if that is what the panic says.
fn refusal(panic: &(dyn Any + Send)) -> Option<String> {
    let text = panic.downcast_ref::<String>()?;
    let (_, message) = text.split_once(": Torch(\"")?;
    // The text is quoted, so that its lines end with a backslash and an n.
    let first_line = message.split("\\n").next()?;
    Some(first_line.trim_end_matches("\")").to_owned())
}

/// The first line of what torch says.
pub(crate) fn first_line(error: &TchError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;

    #[test]
    fn a_refusal_is_an_error_of_one_line_and_a_bug_stays_a_panic() {
        let vector = Tensor::zeros([3], (Kind::Float, Device::Cpu));
        let error = caught(|| vector.narrow(0, 2, 5)).unwrap_err().to_string();
        assert!(error.starts_with("torch: Internal torch error: start (2) + length (5)"), "{error}");
        assert!(!error.contains("frame #") && !error.contains("\\n"), "{error}");
        let bug = catch_unwind(|| caught(|| panic!("a bug"))).unwrap_err();
        assert_eq!(bug.downcast_ref(), Some(&"a bug"));
    }
}
