//! Whose fault an error of a role's crate is: where the user's input is to blame, the exit code is 2; where
//! the same would end in the same way again, 3.

use service::{BadInput, Hopeless};

/// An error of training.
pub(crate) fn of_learner(error: learner::Error) -> anyhow::Error {
    match error {
        error if error.is_bad_input() => BadInput(format!("{error:#}")).into(),
        error if error.comes_again() => Hopeless(format!("{error:#}")).into(),
        error => error.into(),
    }
}

/// An error of a frozen model's pass over a file.
pub(crate) fn of_reward_server(error: reward_server::files::Error) -> anyhow::Error {
    if error.is_bad_input() { BadInput(error.to_string()).into() } else { error.into() }
}
