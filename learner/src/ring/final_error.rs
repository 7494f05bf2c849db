//! Which errors of a rank end the run: those that the next start would meet again. The exit code says so to
//! whoever supervises the process.

use service::{BadInput, Hopeless};

use crate::error::Error;

/// The same error, with what its exit code says: 2 where the input is to blame, 3 where training has
/// diverged, and 1 for what may be otherwise next time.
pub(super) fn final_or_not(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref::<Error>() {
        Some(known) if known.is_bad_input() => BadInput(format!("{error:#}")).into(),
        Some(known) if known.comes_again() => Hopeless(format!("{error:#}")).into(),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;
    use types::BatchId;

    use super::*;

    fn of(error: Error) -> anyhow::Error {
        final_or_not(Err::<(), Error>(error).context("train").unwrap_err())
    }

    #[test]
    fn what_a_restart_would_meet_again_is_final_and_keeps_its_words() {
        let problem = "its policy_loss is no finite number: training has diverged".to_owned();
        let diverged = of(Error::Batch { batch: BatchId(3), problem });
        assert!(diverged.is::<Hopeless>(), "{diverged:#}");
        assert!(
            diverged.to_string().contains("batch b3: its policy_loss is no finite number"),
            "{diverged:#}"
        );
        let config = of(Error::Config { problems: vec!["policy is missing".to_owned()] });
        assert!(config.is::<BadInput>() && config.to_string().contains("policy is missing"), "{config:#}");
        let lost = of(Error::Panicked { rank: 1, reason: "x".to_owned() });
        assert!(!lost.is::<BadInput>() && !lost.is::<Hopeless>(), "{lost:#}");
    }
}
