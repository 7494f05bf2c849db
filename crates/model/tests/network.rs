//! The network's parts against their definitions: attention, gradients, log-probabilities, weights.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helper functions too")]

use model::packed::Error as PackedError;
use model::weights::Error as WeightsError;
use model::{
    Architecture, Dimensions, GroupKind, Head, Kept, LogprobInputs, LogprobOptions, ModelConfig, Packed,
    ScalarInit, SlidingWindow, TokenGradients, Weights,
};
use tch::{Device, IndexOp, Kind, Tensor};

const DIMENSIONS: Dimensions = Dimensions {
    vocab_size: 31,
    hidden_size: 16,
    intermediate_size: 24,
    layers: 2,
    heads: 4,
    kv_heads: 2,
    max_positions: 64,
};

fn config(architecture: Architecture) -> ModelConfig {
    ModelConfig::new(architecture, DIMENSIONS).unwrap()
}

/// Numbers in -1..1 that depend on the seed alone.
fn noise(shape: &[i64], seed: u64, kind: Kind) -> Tensor {
    let count: i64 = shape.iter().product();
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f64 / f64::from(1 << 23) - 1.0
    };
    let values: Vec<f64> = (0..count).map(|_| next()).collect();
    Tensor::from_slice(&values).view(shape).to_kind(kind)
}

fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a.to_kind(Kind::Double) - b.to_kind(Kind::Double)).abs().max().double_value(&[])
}

fn sequences() -> Vec<Vec<u32>> {
    [1u32, 7, 3, 12].iter().map(|length| (0..*length).map(|at| (at * 7 + length) % 31).collect()).collect()
}

/// Attention by its definition, in double precision: a softmax over the keys a query may see.
fn defined_attention(q: &Tensor, k: &Tensor, v: &Tensor, lengths: &[i64], window: Option<i64>) -> Tensor {
    let (_, heads, head_dim) = q.size3().unwrap();
    let shared = heads / k.size()[1];
    let mut start = 0;
    let mut out = Vec::new();
    for length in lengths {
        let rows = start..start + length;
        start += length;
        let part = |x: &Tensor| x.i(rows.clone()).to_kind(Kind::Double).transpose(0, 1);
        let (q, k, v) = (part(q), part(k), part(v));
        let (k, v) =
            (k.repeat_interleave_self_int(shared, 0, None), v.repeat_interleave_self_int(shared, 0, None));
        let scores = q.matmul(&k.transpose(1, 2)) / (head_dim as f64).sqrt();
        let at = Tensor::arange(*length, (Kind::Int64, Device::Cpu));
        let distance = at.unsqueeze(1) - at.unsqueeze(0);
        let visible = distance.ge(0).logical_and(&distance.lt(window.unwrap_or(*length)));
        let masked = scores.masked_fill(&visible.logical_not(), f64::NEG_INFINITY);
        out.push(masked.softmax(-1, None).matmul(&v).transpose(0, 1));
    }
    Tensor::cat(&out, 0)
}

#[test]
fn packed_attention_is_its_definition() {
    let lengths = [3, 1, 600, 40];
    let tokens: Vec<Vec<u32>> = lengths.iter().map(|length| vec![0; *length as usize]).collect();
    let packed = Packed::new(&tokens, 1, Device::Cpu).unwrap();
    for (heads, kv_heads) in [(4, 4), (6, 2), (4, 1)] {
        for window in [None, Some(1), Some(7), Some(300), Some(4096)] {
            let make = |heads, seed| noise(&[644, heads, 8], seed, Kind::Float).set_requires_grad(true);
            let inputs = [make(heads, 1), make(kv_heads, 2), make(kv_heads, 3)];
            let [q, k, v] = &inputs;
            let found = model::packed_attention(q, k, v, &packed, window);
            let expected = defined_attention(q, k, v, &lengths, window);
            assert!(difference(&found, &expected) < 2e-6, "{heads} {kv_heads} {window:?}");
            let weights = noise(&found.size(), 4, Kind::Float);
            let gradients =
                |out: &Tensor| Tensor::run_backward(&[(out * &weights).sum(None)], &inputs, false, false);
            for (found, expected) in gradients(&found).iter().zip(gradients(&expected)) {
                assert!(difference(found, &expected) < 2e-5, "{heads} {kv_heads} {window:?}");
            }
        }
    }
}

/// The gradient of a function of the hidden states in every group's buffer, against finite differences in
/// double precision.
#[test]
fn gradients_reach_every_buffer() {
    let window = SlidingWindow { tokens: 4, layers: vec![false, true] };
    let biased = ModelConfig { attention_bias: true, mlp_bias: true, ..config(Architecture::Llama) };
    let windowed =
        ModelConfig { sliding_window: Some(window), attention_bias: true, ..config(Architecture::Qwen3) };
    let tied = ModelConfig { tie_word_embeddings: true, ..config(Architecture::Qwen2) };
    let experts = config(Architecture::Qwen3Moe);
    for config in [biased, windowed, tied, experts, config(Architecture::Mistral).with_scalar_head()] {
        let packed = Packed::new(&sequences(), config.vocab_size, Device::Cpu).unwrap();
        let weights = Weights::random(&config, 3, Kind::Double, Device::Cpu);
        let mut flats: Vec<Tensor> =
            weights.flats().iter().map(|flat| flat + noise(&flat.size(), 9, Kind::Double) * 0.3).collect();
        flats.iter_mut().for_each(|flat| *flat = flat.set_requires_grad(true));
        let value = |flats: &[Tensor]| {
            let flats = flats.iter().map(Tensor::shallow_clone).collect();
            let network = Weights::from_flats(&config, flats).unwrap().network(&config);
            let hidden = model::forward(&config, &network, &packed);
            let out = hidden.linear(&network.output.head, None::<&Tensor>);
            (&out * noise(&out.size(), 5, Kind::Double)).sum(None)
        };
        let gradients = Tensor::run_backward(&[value(&flats)], &flats, false, false);
        let _guard = tch::no_grad_guard();
        for (group, gradient) in gradients.iter().enumerate() {
            let numel = gradient.numel() as i64;
            for index in (0..numel).step_by(usize::try_from(numel / 29 + 1).unwrap()).chain([numel - 1]) {
                let shifted = |by: f64| {
                    let moved: Vec<Tensor> = flats.iter().map(Tensor::copy).collect();
                    let _ = moved[group].i(index).g_add_scalar_(by);
                    value(&moved).double_value(&[])
                };
                let numeric = (shifted(1e-5) - shifted(-1e-5)) / 2e-5;
                let exact = gradient.double_value(&[index]);
                let close = (numeric - exact).abs() < 1e-6 * (1.0 + exact.abs());
                assert!(close, "{:?} group {group} element {index}: {numeric} {exact}", config.architecture);
            }
        }
    }
}

#[test]
fn logprobs_and_their_gradients_do_not_depend_on_chunks() {
    // 16 rows of this vocabulary fill a chunk, so that 40 rows are three chunks.
    let (rows, width, vocab) = (40, 3, 1 << 20);
    let hidden = noise(&[rows, width], 1, Kind::Float).set_requires_grad(true);
    let head = (noise(&[vocab, width], 2, Kind::Float) * 3.0).set_requires_grad(true);
    let targets = Tensor::arange(rows, (Kind::Int64, Device::Cpu)) * 26_000;
    let (of_logprobs, of_entropy) = (noise(&[rows], 3, Kind::Float), noise(&[rows], 4, Kind::Float));
    let temperature = 0.7;
    let options = LogprobOptions { temperature, entropy: true };

    let double = |tensor: &Tensor| tensor.to_kind(Kind::Double);
    let exact = (double(&hidden).matmul(&double(&head).tr()) / temperature).log_softmax(-1, Kind::Double);
    let exact_logprobs = exact.gather(-1, &targets.unsqueeze(-1), false).squeeze_dim(-1);
    let exact_entropy = -(exact.exp() * &exact).sum_dim_intlist([-1].as_slice(), false, Kind::Double);
    let loss = |logprobs: &Tensor, entropy: &Tensor| {
        (logprobs * &of_logprobs).sum(None) + (entropy * &of_entropy).sum(None)
    };
    let exact_gradients =
        Tensor::run_backward(&[loss(&exact_logprobs, &exact_entropy)], &[&hidden, &head], false, false);

    let found = model::logprobs(&hidden, &head, &targets, options);
    assert!(difference(&found.logprobs, &exact_logprobs) < 1e-5);
    assert!(difference(&found.entropy.unwrap(), &exact_entropy) < 2e-5);

    let mut head_gradient = Tensor::ones([vocab, width], (Kind::Float, Device::Cpu));
    let gradients = TokenGradients { logprobs: &of_logprobs, entropy: Some(&of_entropy) };
    let inputs = LogprobInputs { hidden: &hidden, head: &head, targets: &targets };
    let hidden_gradient =
        model::logprobs_backward(inputs, Kept::default(), temperature, &gradients, Some(&mut head_gradient));
    // The hidden states' gradient is a sum over a million tokens, which f32 rounds by up to a thousandth on
    // some processors.
    let size = exact_gradients[0].abs().max().double_value(&[]);
    let apart = difference(&hidden_gradient, &exact_gradients[0]);
    assert!(apart < 2e-3 * size, "hidden states: {apart} of {size}");
    let apart = difference(&(&head_gradient - 1.0), &exact_gradients[1]);
    assert!(apart < 1e-5, "head: {apart}");
    assert_eq!(model::logprobs(&hidden.i(0..0), &head, &targets.i(0..0), options).logprobs.size(), [0]);

    let (again, kept) = model::logprobs_kept(&hidden, &head, &targets, options);
    assert!(again.logprobs.equal(&found.logprobs) && again.entropy.is_some() && !kept.is_empty());
    let mut from_kept = Tensor::ones([vocab, width], (Kind::Float, Device::Cpu));
    let of_hidden = model::logprobs_backward(inputs, kept, temperature, &gradients, Some(&mut from_kept));
    assert!(of_hidden.equal(&hidden_gradient) && from_kept.equal(&head_gradient), "kept or made again");

    let many = |tensor: &Tensor| Tensor::cat(&[tensor, tensor], 0);
    let (_, kept) = model::logprobs_kept(&many(&hidden), &head, &many(&targets), options);
    assert!(kept.is_empty(), "five chunks are not kept");
}

#[test]
fn the_same_inputs_give_the_same_bits() {
    for config in [config(Architecture::Qwen3), config(Architecture::Qwen3Moe)] {
        let packed = Packed::new(&sequences(), config.vocab_size, Device::Cpu).unwrap();
        let run = || {
            let weights = Weights::random(&config, 5, Kind::Float, Device::Cpu);
            model::tensor_bytes(&model::forward(&config, &weights.network(&config), &packed))
        };
        assert_eq!(run(), run());
    }
}

#[test]
fn random_weights_are_those_of_their_seed() {
    // Golden numbers from the same formula in Python.
    let config = config(Architecture::Qwen2);
    let weights = Weights::random(&config, 7, Kind::Float, Device::Cpu);
    let first = weights.parameter("model.layers.1.mlp.up_proj.weight").unwrap();
    let golden = [0.011_706_536, 0.012_260_216, 0.060_643_695, 0.024_314_34];
    let found: Vec<f32> = Vec::try_from(first.view([-1]).i(0..4)).unwrap();
    assert_eq!(found, golden);
    assert!((first.std(true).double_value(&[]) - 0.02).abs() < 0.003);
    assert!(difference(&first, &weights.parameter("model.layers.0.mlp.up_proj.weight").unwrap()) > 0.02);
    for parameter in weights.parameters().filter(|parameter| parameter.tensor.dim() == 1) {
        let expected = if parameter.name.ends_with("bias") { 0.0 } else { 1.0 };
        assert!(parameter.tensor.eq(expected).all().int64_value(&[]) == 1, "{}", parameter.name);
    }
    let half = Weights::random(&config, 7, Kind::BFloat16, Device::Cpu);
    assert!(half.flats()[1].equal(&weights.flats()[1].to_kind(Kind::BFloat16)));
}

#[test]
fn views_stay_valid_across_a_weight_swap() {
    let config = config(Architecture::Llama);
    let mut serving = Weights::random(&config, 1, Kind::Float, Device::Cpu);
    let published = Weights::random(&config, 2, Kind::BFloat16, Device::Cpu);
    let network = serving.network(&config);
    serving.copy_from(&published).unwrap();
    let down = published.parameter("model.layers.1.mlp.down_proj.weight").unwrap();
    assert_eq!(difference(&network.blocks[1].feed_forward.dense().down, &down), 0.0);
    let other = Weights::zeros(&ModelConfig { vocab_size: 32, ..config }, Kind::Float, Device::Cpu);
    let error = serving.copy_from(&other).unwrap_err();
    assert!(error.to_string().contains("model.embed_tokens.weight [31, 16] against"), "{error}");
}

#[test]
fn a_critic_shares_nothing_with_its_trunk() {
    let policy_config = ModelConfig { tie_word_embeddings: true, ..config(Architecture::Llama) };
    let policy = Weights::random(&policy_config, 1, Kind::Float, Device::Cpu);
    let (config, critic) = policy.with_scalar_head(&policy_config, ScalarInit::Zero);
    assert_eq!(config.head, Head::Scalar);
    assert_eq!(critic.numel(), policy.numel() + 16);
    let embedding = critic.parameter("model.embed_tokens.weight").unwrap();
    assert_eq!(difference(&embedding, &policy.flats()[0].view([31, 16])), 0.0);
    let packed = Packed::new(&sequences(), 31, Device::Cpu).unwrap();
    let values = |weights: &Weights| {
        let network = weights.network(&config);
        model::scores(&network.output, &model::forward(&config, &network, &packed))
    };
    assert_eq!(values(&critic).size(), [packed.total()]);
    assert_eq!(values(&critic).abs().max().double_value(&[]), 0.0);
    let _ = policy.flats()[0].shallow_clone().zero_();
    assert!(embedding.abs().max().double_value(&[]) > 0.0);
    let (_, from_reward_model) = {
        let (config, reward) = critic.with_scalar_head(&config, ScalarInit::Normal { seed: 4 });
        let _ = reward.parameter("score.weight").unwrap().fill_(3.0);
        reward.with_scalar_head(&config, ScalarInit::Zero)
    };
    assert_eq!(from_reward_model.parameter("score.weight").unwrap().max().double_value(&[]), 3.0);
    let (_, drawn) = policy.with_scalar_head(&policy_config, ScalarInit::Normal { seed: 4 });
    assert!(drawn.parameter("score.weight").unwrap().std(true).double_value(&[]) > 0.005);
}

#[test]
fn buffers_that_do_not_fit_are_refused() {
    let config = config(Architecture::Mistral);
    let flats = || -> Vec<Tensor> {
        Weights::zeros(&config, Kind::Float, Device::Cpu).flats().iter().map(Tensor::shallow_clone).collect()
    };
    let refuse = |change: &dyn Fn(&mut Vec<Tensor>)| {
        let mut flats = flats();
        change(&mut flats);
        Weights::from_flats(&config, flats).unwrap_err()
    };
    assert_eq!(refuse(&|flats| drop(flats.pop())), WeightsError::Groups { found: 3, expected: 4 });
    let short = refuse(&|flats| flats[2] = flats[2].i(1..));
    assert!(matches!(short, WeightsError::Buffer { group: GroupKind::Block(1), .. }), "{short}");
    let mixed = refuse(&|flats| flats[3] = flats[3].to_kind(Kind::Half));
    assert!(matches!(mixed, WeightsError::Mixed { group: GroupKind::Output, .. }), "{mixed}");
}

/// Buffers have no gaps, matrices come first, and what is decayed is the matrices.
#[test]
fn groups_are_contiguous_and_matrices_first() {
    let biased = ModelConfig { attention_bias: true, ..config(Architecture::Qwen3) };
    for config in [config(Architecture::Qwen2), biased, config(Architecture::Llama).with_scalar_head()] {
        let weights = Weights::zeros(&config, Kind::Float, Device::Cpu);
        for (group, flat) in weights.layout().groups.iter().zip(weights.flats()) {
            let mut end = 0;
            for parameter in &group.parameters {
                assert_eq!(parameter.offset, end);
                end += parameter.numel();
                assert_eq!(parameter.shape.len() == 2, end <= group.decayed, "{}", parameter.name);
            }
            assert_eq!((end, vec![end]), (group.numel, flat.size()));
        }
    }
}

#[test]
fn sequences_that_cannot_be_packed_are_named() {
    let pack = |sequences: &[Vec<u32>]| Packed::new(sequences, 31, Device::Cpu).map(|packed| packed.total());
    assert_eq!(pack(&[]), Err(PackedError::NoSequence));
    assert_eq!(pack(&[vec![1], vec![]]), Err(PackedError::Empty { sequence: 1 }));
    let outside = PackedError::Token { sequence: 1, position: 2, token: 31, vocab_size: 31 };
    assert_eq!(pack(&[vec![1], vec![0, 30, 31]]), Err(outside));
    assert_eq!(pack(&[vec![1], vec![0, 30]]), Ok(3));
}
