//! Four times as many rollouts as can be scored: bounded memory, full speed, nothing lost.
