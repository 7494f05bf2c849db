//! The arguments of commands that draw responses.

use service::BadInput;
use types::{Sampling, SamplingParams};

/// How responses are drawn, in the meaning of transformers' `GenerationConfig`.
#[derive(Debug, clap::Args)]
pub(crate) struct SamplingArguments {
    /// Most tokens of a response.
    #[arg(long, default_value_t = 256)]
    max_new_tokens: u32,
    /// Divides the logits; 0 is greedy.
    #[arg(long)]
    temperature: Option<f32>,
    /// Keeps the smallest set of tokens whose probability reaches this.
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// Keeps so many of the most probable tokens; 0 keeps all.
    #[arg(long, default_value_t = 0)]
    top_k: u32,
    /// Keeps tokens of at least this share of the best one's probability.
    #[arg(long, default_value_t = 0.0)]
    min_p: f32,
    /// Makes tokens seen before less likely, above 1.
    #[arg(long, default_value_t = 1.0)]
    repetition_penalty: f32,
    /// A text that ends a response; may be given several times.
    #[arg(long)]
    stop: Vec<String>,
    /// Goes on after the end-of-sequence token.
    #[arg(long)]
    ignore_eos: bool,
}

impl SamplingArguments {
    /// As the engine takes them; `temperature` is used where none was given, `stop` ends responses beside the
    /// texts that were given.
    ///
    /// # Errors
    /// Names the parameter that is out of range.
    pub(crate) fn sampling(&self, temperature: f32, stop: &[String]) -> Result<Sampling, BadInput> {
        let params = SamplingParams {
            temperature: self.temperature.unwrap_or(temperature),
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            max_new_tokens: self.max_new_tokens,
            stop: [&self.stop, stop].concat(),
            stop_token_ids: Vec::new(),
            ignore_eos: self.ignore_eos,
        };
        Sampling::new(params).map_err(|error| BadInput(error.to_string()))
    }
}
