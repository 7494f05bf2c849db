//! Whose fault an error of a role's crate is: where the user's input is to blame, the exit code is 2.

use service::BadInput;

/// An error of training.
pub(crate) fn of_learner(error: learner::Error) -> anyhow::Error {
    if error.is_bad_input() { BadInput(format!("{error:#}")).into() } else { error.into() }
}

/// An error of a frozen model's pass over a file.
pub(crate) fn of_reward_server(error: reward_server::files::Error) -> anyhow::Error {
    if error.is_bad_input() { BadInput(error.to_string()).into() } else { error.into() }
}
