//! The subcommands, one file each.

mod certs;
mod check_config;
mod compare;
mod dashboard;
mod doctor;
mod engine_arguments;
mod eval;
mod filter;
mod generate;
mod grade;
pub(crate) mod identity;
mod init;
mod lines;
mod logprobs;
mod private_file;
mod r2;
mod render;
mod replay;
mod report;
mod run;
mod sampling;
mod score;
mod serve;
mod stage;
mod sweep;
mod token;
mod top;
mod trace;
mod track;
mod train;

use std::process::ExitCode;

use crate::heartbeat::Heartbeat;
use crate::programs;
use crate::runtime::on_runtime;

/// What `sluice` can be told to do.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Runs a recipe on this machine: its stages, and the ring as supervised processes.
    Run(run::Arguments),
    /// Runs a recipe with several values and seeds, and compares what comes of them.
    Sweep(sweep::Arguments),
    /// Compares runs: what they came to, and in which keys they differ.
    Compare(compare::Arguments),
    #[command(flatten)]
    Compute(ComputeCommand),
    /// Grades samples by hidden tests in the sandbox; prints pass@k.
    Grade(grade::Arguments),
    /// PF-PPO's filtration on a file of scored rollouts.
    Filter(filter::Arguments),
    /// How far a reward can be trusted under each filtration strategy.
    R2(r2::Arguments),
    /// A live view of a run in the terminal.
    Top(top::Arguments),
    /// The page of runs that are over, interrupted or alive, side by side.
    Dashboard(dashboard::Arguments),
    /// Writes a run as one HTML file: results, curves, what happened, samples, configuration.
    Report(report::Arguments),
    /// The life of a response, from its lease to the step that it trained.
    Trace(trace::Arguments),
    /// Hands the curves of runs to TensorBoard, W&B, MLflow or trackio.
    Track(track::Arguments),
    /// Writes a commented recipe to begin with.
    Init(init::Arguments),
    /// Looks whether this machine is fit for runs, and says what to do.
    Doctor(doctor::Arguments),
    /// Certificates for trials.
    Certs(certs::Arguments),
    /// The secret of a run, and the tokens that follow from it.
    Token(token::Arguments),
    /// Checks a recipe and prints it as it would be used.
    CheckConfig(check_config::Arguments),
    /// Writes the ring of a recipe as files for a cluster.
    Render(render::Arguments),
}

/// What computes: done by `sluice-compute`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum ComputeCommand {
    /// Log-probs of token sequences or responses under a model.
    Logprobs(logprobs::Arguments),
    /// Responses of a model to prompts.
    Generate(generate::Arguments),
    /// Scores of token sequences or responses by a reward model.
    Score(score::Arguments),
    /// Samples a model on problems and judges what comes, by hidden tests or by any scorer.
    Eval(Box<eval::Arguments>),
    /// The learner's step on recorded samples.
    Replay(replay::Arguments),
    /// Supervised fine-tuning.
    #[command(after_help = train::SFT_HELP)]
    Sft(train::Arguments),
    /// A reward model from preference pairs.
    #[command(after_help = train::REWARD_MODEL_HELP)]
    TrainRm(train::Arguments),
    /// Direct preference optimisation (DPO, cDPO, IPO, KTO).
    #[command(after_help = train::DPO_HELP)]
    Dpo(train::Arguments),
    /// Serves a model under the OpenAI API.
    Serve(serve::Arguments),
    /// One stage of a recipe, for `sluice run`.
    #[command(hide = true)]
    Stage(stage::Arguments),
}

impl Command {
    /// Does it, and says with which code to exit. A command that computes never returns: this process becomes
    /// another program.
    ///
    /// # Errors
    /// Whatever went wrong, with what to do about it.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Run(arguments) => return on_runtime(run::run(arguments)),
            Self::Sweep(arguments) => return on_runtime(sweep::run(arguments)),
            Self::Compare(arguments) => compare::run(&arguments)?,
            Self::Compute(_) => match programs::become_compute()? {},
            Self::Grade(arguments) => grade::run(&arguments)?,
            Self::Filter(arguments) => filter::run(&arguments)?,
            Self::R2(arguments) => r2::run(&arguments)?,
            Self::Top(arguments) => on_runtime(top::run(arguments))?,
            Self::Dashboard(arguments) => on_runtime(dashboard::run(arguments))?,
            Self::Report(arguments) => report::run(&arguments)?,
            Self::Trace(arguments) => trace::run(&arguments)?,
            Self::Track(arguments) => track::run(arguments)?,
            Self::Init(arguments) => init::run(&arguments)?,
            Self::Doctor(arguments) => return doctor::run(&arguments),
            Self::Certs(arguments) => certs::run(&arguments)?,
            Self::Token(arguments) => token::run(&arguments)?,
            Self::CheckConfig(arguments) => check_config::run(&arguments)?,
            Self::Render(arguments) => render::run(&arguments)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl ComputeCommand {
    /// Does it.
    ///
    /// # Errors
    /// Whatever went wrong, with what to do about it.
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let is_server = matches!(self, Self::Serve(_));
        let _heartbeat = (!is_server).then(Heartbeat::of_work);
        match self {
            Self::Logprobs(arguments) => logprobs::run(&arguments),
            Self::Generate(arguments) => generate::run(&arguments),
            Self::Score(arguments) => score::run(&arguments),
            Self::Eval(arguments) => eval::run(&arguments),
            Self::Replay(arguments) => replay::run(&arguments),
            Self::Sft(arguments) => train::sft(&arguments),
            Self::TrainRm(arguments) => train::reward_model(&arguments),
            Self::Dpo(arguments) => train::dpo(&arguments),
            Self::Serve(arguments) => on_runtime(serve::run(arguments)),
            Self::Stage(arguments) => stage::run(&arguments),
        }
    }
}
