//! How a response ends. Each issued id gets exactly one [`Ending`]; until then it is in flight.
//!
//! The sets are closed: every reason is a metric label. Filtering is intended, the other two are not, and
//! none of them is ever turned into a reward of zero (`docs/decisions.md`, D4).

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident => $label:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            /// Every reason, in the order of declaration.
            pub const ALL: &'static [$name] = &[$($name::$variant,)+];

            /// The metric labels of [`Self::ALL`].
            pub const LABELS: &'static [&'static str] = &[$($label,)+];

            /// The metric label.
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $label,)+ }
            }

            /// The reason with this label.
            pub fn from_label(label: &str) -> Option<$name> {
                Self::ALL.iter().copied().find(|reason| reason.as_str() == label)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

reasons!(
    /// Why a scored response was filtered: the intended loss of PF-PPO.
    FilterReason {
        /// The filtration strategy did not select it.
        Strategy => "strategy",
        /// Its group carries no signal for the strategy (all scores equal).
        NoSignal => "no_signal",
    }
);

reasons!(
    /// Why a response was dropped although nothing was wrong with it.
    DropReason {
        /// Its oldest token is older than `max_staleness` allows.
        Stale => "stale",
        /// Too many of its siblings failed; a group that small is not filtered.
        GroupIncomplete => "group_incomplete",
        /// The run reached its last step first.
        RunFinished => "run_finished",
        /// An earlier attempt at the same response came after all.
        Superseded => "superseded",
    }
);

reasons!(
    /// Why an attempt brought no scored response. A failed attempt may be issued again under the next
    /// attempt.
    FailReason {
        /// The lease ran out before the response came.
        LeaseExpired => "lease_expired",
        /// The actor left, crashed or was restarted.
        ActorLost => "actor_lost",
        /// The actor handed the prompt back unfinished (draining).
        Returned => "returned",
        /// The actor could not generate: the engine refused the prompt.
        Generation => "generation",
        /// The response or its numbers broke an invariant (a log-prob that is not finite, say).
        Invalid => "invalid",
        /// The reward server did not finish before its deadline.
        RewardTimeout => "reward_timeout",
        /// A scorer failed: the reward model, the sandbox, a custom function, a remote service.
        RewardError => "reward_error",
        /// The problem cannot be graded where the reward server runs.
        Unsupported => "unsupported",
        /// The machine of the reward server did not give the response its processor time.
        Overload => "overload",
        /// The environment of an episode failed, or could not be begun.
        Environment => "environment",
        /// The agent that played an episode was lost, gave it up, or did not end it in time.
        Agent => "agent",
    }
);

reasons!(
    /// Why an episode of several turns had no further one (`docs/decisions.md`, D24).
    EpisodeEnd {
        /// The policy called nothing any more, or the environment said that it is over.
        Finished => "finished",
        /// A turn was cut off at its longest length.
        Length => "length",
        /// It had as many turns as it may have.
        Turns => "turns",
        /// It had as many drawn tokens as it may have.
        Tokens => "tokens",
        /// It lasted as long as it may.
        WallTime => "wall_time",
        /// Its tools had the time that they may have.
        ToolTime => "tool_time",
        /// The context has no room for what the environment said and a further turn.
        Context => "context",
        /// The chat template does not go on from the exact tokens of the episode.
        Template => "template",
    }
);

impl EpisodeEnd {
    /// Whether it was cut off rather than over.
    pub fn is_cut(self) -> bool {
        self != Self::Finished
    }
}

impl FailReason {
    /// Whether another attempt at the same prompt may end otherwise. What the prompt itself causes is not
    /// repeated.
    pub fn is_retriable(self) -> bool {
        match self {
            Self::LeaseExpired
            | Self::ActorLost
            | Self::Returned
            | Self::Invalid
            | Self::RewardTimeout
            | Self::RewardError
            | Self::Overload
            | Self::Environment
            | Self::Agent => true,
            Self::Generation | Self::Unsupported => false,
        }
    }
}

/// The one ending of an issued response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// The learner has trained on it.
    Trained,
    /// It was asked of a held-out prompt, and has been scored: nothing is learnt from it.
    Evaluated,
    /// Filtered, as intended.
    Filtered(FilterReason),
    /// Dropped, not as intended.
    Dropped(DropReason),
    /// The attempt failed.
    Failed(FailReason),
}

impl Ending {
    /// The metric labels: outcome and reason.
    pub fn labels(self) -> (&'static str, &'static str) {
        match self {
            Self::Trained => ("trained", ""),
            Self::Evaluated => ("evaluated", ""),
            Self::Filtered(reason) => ("filtered", reason.as_str()),
            Self::Dropped(reason) => ("dropped", reason.as_str()),
            Self::Failed(reason) => ("failed", reason.as_str()),
        }
    }
}

/// As `outcome` or `outcome{reason}`.
impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.labels() {
            (outcome, "") => f.write_str(outcome),
            (outcome, reason) => write!(f, "{outcome}{{{reason}}}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_unique_and_match_serde() {
        for reason in FailReason::ALL {
            assert_eq!(FailReason::from_label(reason.as_str()), Some(*reason));
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
        }
        for reason in DropReason::ALL {
            assert_eq!(DropReason::from_label(reason.as_str()), Some(*reason));
        }
        for end in EpisodeEnd::ALL {
            assert_eq!(EpisodeEnd::from_label(end.as_str()), Some(*end));
            assert_eq!(end.is_cut(), *end != EpisodeEnd::Finished);
        }
        assert_eq!(FilterReason::from_label("nonsense"), None);
    }
}
