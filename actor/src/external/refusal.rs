//! What an external engine is not used for: whatever would make rollouts whose log-probs are not those that
//! [`types::RolloutParts`] promises, under the untruncated distribution at the sampling temperature.

use engine::{Backend, EngineConfig};
use types::Sampling;

use super::protocol::Protocol;

/// Least difference between what both readings of a log-prob expect, in nats, that decides which one it is.
const DECISIVE: f32 = 0.1;

/// Why a run cannot have this actor, each as one sentence; none for an engine of its own.
pub fn external_problems(config: &EngineConfig, sampling: &Sampling, deterministic: bool) -> Vec<String> {
    let Some(name) = config.backend.external() else { return Vec::new() };
    let mut problems = of_sampling(config.backend, sampling);
    if deterministic {
        problems.push(format!(
            "the run is deterministic, but what a {name} server draws depends on what else it computes; use an \
             engine of the actor's own"
        ));
    }
    problems
}

/// The same of how tokens are drawn.
pub(super) fn of_sampling(backend: Backend, sampling: &Sampling) -> Vec<String> {
    let Some(name) = backend.external() else { return Vec::new() };
    let cases = [
        (
            sampling.truncates(),
            format!(
                "sampling has top_p, top_k or min_p, but {name} does not say what mass survives them; keep top_p = 1, \
                 top_k = 0 and min_p = 0"
            ),
        ),
        (
            sampling.repetition_penalty().to_bits() != 1.0_f32.to_bits(),
            format!(
                "sampling.repetition_penalty is {}, which {name} computes otherwise than the learner; keep 1",
                sampling.repetition_penalty()
            ),
        ),
        (
            backend == Backend::Vllm && !sampling.stop().is_empty(),
            "sampling.stop has texts, which vllm's tokens-only pages do not look for; take stop_token_ids"
                .to_owned(),
        ),
        (
            backend == Backend::Sglang && sampling.ignores_eos() && !sampling.stop_token_ids().is_empty(),
            "sampling has ignore_eos and stop_token_ids, but sglang ignores both or none".to_owned(),
        ),
    ];
    cases.into_iter().filter(|(wrong, _)| *wrong).map(|(_, problem)| problem).collect()
}

/// What a server's log-probs are those of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Measured {
    /// The distribution that the tokens are drawn from.
    AtTemperature,
    /// The distribution at temperature 1.
    AtOne,
    /// Neither, or nothing that tells them apart.
    Unclear,
}

/// Compares the log-probs of one place at temperature 1 with those at another: a difference between two
/// tokens shrinks by the temperature, if log-probs are taken after it.
pub(super) fn measure(at_one: &[(u32, f32)], at_temperature: &[(u32, f32)], temperature: f32) -> Measured {
    let both: Vec<(f32, f32)> = at_one
        .iter()
        .filter_map(|(token, logprob)| {
            let other = at_temperature.iter().find(|(other, _)| other == token)?;
            Some((*logprob, other.1))
        })
        .collect();
    let order = |a: &&(f32, f32), b: &&(f32, f32)| a.0.total_cmp(&b.0);
    let (Some(most), Some(least)) = (both.iter().max_by(order), both.iter().min_by(order)) else {
        return Measured::Unclear;
    };
    let (difference, measured) = (most.0 - least.0, most.1 - least.1);
    let (after, before) = (difference / temperature, difference);
    let apart = (after - before).abs();
    if apart < DECISIVE {
        Measured::Unclear
    } else if (measured - after).abs() < apart / 4.0 {
        Measured::AtTemperature
    } else if (measured - before).abs() < apart / 4.0 {
        Measured::AtOne
    } else {
        Measured::Unclear
    }
}

/// What is said of a server whose log-probs are not those of the temperature.
pub(super) fn wrong_temperature(protocol: Protocol, temperature: f32) -> String {
    let way = match protocol {
        Protocol::Vllm => "start it with --logprobs-mode processed_logprobs",
        Protocol::Sglang => "start it without SGLANG_RETURN_ORIGINAL_LOGPROB",
    };
    let name = protocol.name();
    format!(
        "the log-probs of this {name} server are those of temperature 1, but tokens are drawn at {temperature}: {way}, \
         or set sampling.temperature = 1"
    )
}

#[cfg(test)]
mod tests {
    use types::SamplingParams;

    use super::*;

    fn said(backend: Backend, params: SamplingParams, deterministic: bool) -> Vec<String> {
        let config = EngineConfig { backend, ..EngineConfig::default() };
        external_problems(&config, &Sampling::new(params).unwrap(), deterministic)
    }

    #[test]
    fn what_breaks_the_log_probs_is_refused_by_name() {
        let plain = SamplingParams::default;
        let stop = || SamplingParams { stop: vec!["x".to_owned()], ..plain() };
        let endless = || SamplingParams { ignore_eos: true, stop_token_ids: vec![3], ..plain() };
        let top_p = || SamplingParams { top_p: 0.9, ..plain() };
        let penalty = SamplingParams { repetition_penalty: 1.1, ..plain() };
        for backend in [Backend::Vllm, Backend::Sglang] {
            let name = backend.external().unwrap();
            assert_eq!(said(backend, plain(), false), Vec::<String>::new());
            assert_eq!(
                said(backend, SamplingParams { temperature: 0.7, ..plain() }, false),
                Vec::<String>::new()
            );
            for (params, word) in [(top_p(), "top_p"), (penalty.clone(), "repetition_penalty")] {
                let problems = said(backend, params, false);
                assert!(
                    problems.len() == 1 && problems[0].contains(word) && problems[0].contains(name),
                    "{problems:?}"
                );
            }
            let problems = said(backend, plain(), true);
            assert!(problems.len() == 1 && problems[0].contains("deterministic"), "{problems:?}");
        }
        assert_eq!(said(Backend::Vllm, stop(), false).len(), 1);
        assert_eq!(said(Backend::Sglang, stop(), false).len(), 0);
        assert_eq!(said(Backend::Vllm, endless(), false).len(), 0);
        assert_eq!(said(Backend::Sglang, endless(), false).len(), 1);
        assert_eq!(
            said(Backend::Auto, top_p(), true),
            Vec::<String>::new(),
            "an engine of our own can all that"
        );
    }

    #[test]
    fn a_difference_tells_which_distribution_log_probs_are_of() {
        let at_one = [(5, -0.5), (6, -1.5), (7, -3.0)];
        let divided = |t: f32| [(7, -4.0 - 3.0 / t), (5, -4.0 - 0.5 / t), (9, -9.0)];
        for temperature in [0.5, 0.7, 1.3, 2.0] {
            assert_eq!(measure(&at_one, &divided(temperature), temperature), Measured::AtTemperature);
            assert_eq!(measure(&at_one, &divided(1.0), temperature), Measured::AtOne);
            assert_eq!(
                measure(&at_one, &divided(1.0 + 0.5 * (temperature - 1.0)), temperature),
                Measured::Unclear
            );
            assert_eq!(measure(&at_one[..1], &divided(temperature), temperature), Measured::Unclear);
            assert_eq!(measure(&at_one, &[], temperature), Measured::Unclear);
        }
        let flat = [(5, -1.0), (6, -1.01)];
        assert_eq!(measure(&flat, &flat, 0.5), Measured::Unclear);
    }
}
