//! The ring as a Slurm job: one heterogeneous batch job with a part for each kind of process, and a job that
//! adds actors.
//!
//! The batch script is the supervisor: it starts the coordinator beside itself and every other role as a
//! step, starts again what dies, and passes a request to stop on to the coordinator, which tells everybody
//! else. Processes find each other through the ring's folder on the shared file system, so that no port has
//! to be chosen beforehand.

use anyhow::Context as _;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, UndefinedBehavior, context};
use service::BadInput;
use toml::Value;

use super::options::{ForRole, RingOptions, all_for, one_for};
use super::ring::Ring;
use super::{RenderedFile, write};
use crate::recipe::Role;

/// How much longer than a process of the ring the job has to leave.
const LEAVE_MARGIN_SECONDS: u64 = 30;

/// Batch scripts for Slurm: `sbatch DIR/ring.sbatch`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    ring: RingOptions,
    /// Folder of the binaries on the nodes; the path decides where not given.
    #[arg(long, value_name = "DIR")]
    binaries: Option<String>,
    /// Partition; may be given several times. The coordinator runs beside the reward servers.
    #[arg(long, value_name = "[ROLE=]NAME")]
    partition: Vec<ForRole<String>>,
    /// Account that the job is charged to.
    #[arg(long)]
    account: Option<String>,
    /// Time limit of the job, after which it is queued again and goes on.
    #[arg(long)]
    time: Option<String>,
    /// Another option of sbatch, such as `--sbatch=learner=--constraint=h100`; may be given several times.
    #[arg(long, value_name = "[ROLE=]OPTION", allow_hyphen_values = true)]
    sbatch: Vec<ForRole<String>>,
}

/// Renders a recipe's ring and writes the scripts.
///
/// # Errors
/// Names the place in the recipe, or the option, and what is wrong there.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let ring = ring(options)?;
    write(&options.ring.output, &files(options, &ring)?)?;
    ring.mention_other_stages();
    Ok(())
}

/// The ring, told what holds on every node; the scripts tell each process the rest.
fn ring(options: &Options) -> anyhow::Result<Ring> {
    let mut ring = Ring::read(&options.ring)?;
    ring.set_all("service.listen_metrics", "0.0.0.0:0");
    ring.set(Role::Coordinator, "listen", "0.0.0.0:0");
    if !ring.recipe.security.insecure && ring.recipe.security.token_file.is_none() {
        let tokens = ring.folder().root().join("token").display().to_string();
        ring.set_all("service.security.token_file", &tokens);
    }
    ring.check(examples_of)?;
    Ok(ring)
}

/// What `member.sh` tells a process, as some node could have it, for a check.
fn examples_of(role: Role) -> Vec<(&'static str, Value)> {
    let told: &[(&str, &str)] = match role {
        Role::Coordinator => &[],
        Role::RewardServer => &[("coordinator", "node:1"), ("listen", "10.0.0.1:0")],
        Role::Learner => &[("coordinator", "node:1"), ("listen", "10.0.0.1:0"), ("rendezvous", "10.0.0.1:0")],
        Role::Actor => &[("coordinator", "node:1"), ("listen_weights", "10.0.0.1:0")],
    };
    told.iter().map(|(key, value)| (*key, Value::String((*value).to_owned()))).collect()
}

fn files(options: &Options, ring: &Ring) -> anyhow::Result<Vec<RenderedFile>> {
    let mut files = Vec::new();
    for role in Role::ALL {
        let text = format!("# {}\n{}", ring.origin("slurm"), ring.config_text(role)?);
        files.push(RenderedFile::new(format!("config/{}.toml", role.name()), text));
    }
    let parts = [Role::RewardServer, Role::Learner, Role::Actor];
    let parts = parts.into_iter().enumerate().map(|(number, role)| part(number, role, options, ring));
    let parts: Vec<minijinja::Value> = parts.collect::<anyhow::Result<_>>()?;
    let grace_period = Role::ALL.map(|role| ring.of(role).grace_period.as_secs()).into_iter().max();
    let grace_period = grace_period.unwrap_or_default();
    let last_checkpoint = format!("step-{:08}", ring.recipe.coordinator.batches);
    let binaries = options.binaries.as_deref().map(|folder| plain("--binaries", folder)).transpose()?;
    let values = context! {
        origin => ring.origin("slurm"),
        run => ring.recipe.name.as_str(),
        folder => plain("--output", &options.ring.output.display().to_string())?,
        ring => plain("output of the recipe", &ring.folder().root().display().to_string())?,
        last_checkpoint => ring.folder().checkpoints().join(last_checkpoint).display().to_string(),
        binaries => binaries.unwrap_or_default(),
        parts => parts,
        actors => part(0, Role::Actor, options, ring)?,
        drain_seconds => grace_period,
        lead_seconds => grace_period + LEAVE_MARGIN_SECONDS,
    };
    for (name, template) in [
        ("ring.sbatch", include_str!("slurm/ring.sbatch")),
        ("actors.sbatch", include_str!("slurm/actors.sbatch")),
        ("member.sh", include_str!("slurm/member.sh")),
    ] {
        files.push(RenderedFile::executable(name, fill_in(name, template, &values)?));
    }
    Ok(files)
}

/// A part of the heterogeneous job, for the templates: processes that are given the same.
fn part(number: usize, role: Role, options: &Options, ring: &Ring) -> anyhow::Result<minijinja::Value> {
    let plan = ring.of(role);
    let mut words = Vec::new();
    for (option, value) in [
        ("partition", one_for(&options.partition, role)),
        ("account", options.account.as_ref()),
        ("time", options.time.as_ref()),
    ] {
        if let Some(value) = value {
            words.push(format!("--{option}={}", plain(&format!("--{option}"), value)?));
        }
    }
    words.extend(all_for(&options.sbatch, role).cloned());
    if let Some(word) = words.iter().find(|word| !word.starts_with('-') || word.contains(char::is_control)) {
        let problem = format!("--sbatch is {word:?}, must be an option of sbatch, such as --qos=high");
        return Err(BadInput(problem).into());
    }
    Ok(context! {
        number => number,
        role => role.name(),
        tasks => plan.processes,
        cpus => plan.resources.cpus,
        mebibytes_per_cpu => plan.resources.memory_mib.div_ceil(plan.resources.cpus.into()),
        gpu => plan.gpu,
        options => words,
    })
}

fn fill_in(name: &str, template: &str, values: &minijinja::Value) -> anyhow::Result<String> {
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true).keep_trailing_newline(true);
    let mut environment = Environment::new();
    environment.set_syntax(syntax.build().expect("the default delimiters are valid"));
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    let text = environment.render_str(template, values.clone());
    text.with_context(|| format!("write {name}"))
}

/// A text that can stand in a script and in an option of sbatch as it is.
fn plain<'a>(what: &str, text: &'a str) -> anyhow::Result<&'a str> {
    if !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+:@,".contains(c)) {
        return Ok(text);
    }
    let problem = format!("{what} is {text:?}; a batch script takes only letters, digits and ./_-+:@, there");
    Err(BadInput(problem).into())
}
