//! The ring as a Slurm job of coordinator, reward servers and learner, on one node or as a heterogeneous job
//! with a part for each; and its actors as an array of jobs, so that a lost node costs its actors alone.
//!
//! The batch script is the supervisor: it starts the coordinator beside itself and the other roles as steps,
//! submits the actors, starts again what dies, and passes a request to stop on to the coordinator, which
//! tells everybody else. Processes find each other through the ring's folder on the shared file system, so
//! that no port has to be chosen beforehand.

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

/// How long an actor's job holds its node while there is no ring: a ring that is queued again mostly comes
/// back within a few minutes.
const WAIT_SECONDS: u64 = 600;

/// The most ranks of a learner that are put on one node without being asked to.
const RANKS_OF_A_NODE: usize = 8;

/// Where coordinator, reward servers and learner run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Layout {
    /// On one node, as steps of one job.
    OneNode,
    /// As the parts of a heterogeneous job, which Slurm never puts on the same node.
    Parts,
}

/// Batch scripts for Slurm: `sbatch DIR/ring.sbatch`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    ring: RingOptions,
    /// Folder of the binaries on the nodes; the path decides where not given.
    #[arg(long, value_name = "DIR")]
    binaries: Option<String>,
    /// Where coordinator, reward servers and learner run: on one node, or in a part for the reward servers
    /// and one for the learner, which may span several. One node where that is not given, the learner has at
    /// most 8 ranks, and both are given the same --partition and --sbatch. Actors are jobs of their own.
    #[arg(long, value_enum)]
    layout: Option<Layout>,
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
    let one_node = match layout(options, ring)? {
        Layout::OneNode => one_node(options, ring)?,
        Layout::Parts => minijinja::Value::from(()),
    };
    let parts = IN_THE_RING.into_iter().enumerate().map(|(number, role)| part(number, role, options, ring));
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
        one_node => one_node,
        parts => parts,
        actors => part(0, Role::Actor, options, ring)?,
        drain_seconds => grace_period,
        lead_seconds => grace_period + LEAVE_MARGIN_SECONDS,
        wait_seconds => WAIT_SECONDS,
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

/// The roles that are steps of the ring's own job.
const IN_THE_RING: [Role; 2] = [Role::RewardServer, Role::Learner];

/// Where the ring runs, as was asked for or as fits.
fn layout(options: &Options, ring: &Ring) -> anyhow::Result<Layout> {
    let [reward_server, learner] = IN_THE_RING.map(|role| words(options, role));
    let alike = reward_server? == learner?;
    match options.layout {
        Some(Layout::OneNode) if !alike => {
            let problem = "--layout one-node puts reward servers and learner into one job: \
                           give both the same --partition and --sbatch";
            Err(BadInput(problem.to_owned()).into())
        }
        Some(layout) => Ok(layout),
        None if alike && ring.of(Role::Learner).processes <= RANKS_OF_A_NODE => Ok(Layout::OneNode),
        None => Ok(Layout::Parts),
    }
}

/// What the node is asked for that holds the whole ring but its actors.
fn one_node(options: &Options, ring: &Ring) -> anyhow::Result<minijinja::Value> {
    let (mut cpus, mut mebibytes, mut gpus) = (0, 0, 0);
    for role in IN_THE_RING.into_iter().chain([Role::Coordinator]) {
        let plan = ring.of(role);
        let processes = plan.processes as u64;
        cpus += processes * u64::from(plan.resources.cpus);
        mebibytes += processes * plan.resources.memory_mib;
        gpus += if plan.gpu { processes } else { 0 };
    }
    let options = words(options, Role::Learner)?;
    Ok(context! { cpus => cpus, mebibytes => mebibytes, gpus => gpus, options => options })
}

/// The processes of a role, for the templates; each is given the same.
fn part(number: usize, role: Role, options: &Options, ring: &Ring) -> anyhow::Result<minijinja::Value> {
    let plan = ring.of(role);
    Ok(context! {
        number => number,
        role => role.name(),
        tasks => plan.processes,
        cpus => plan.resources.cpus,
        mebibytes => plan.processes as u64 * plan.resources.memory_mib,
        mebibytes_per_cpu => plan.resources.memory_mib.div_ceil(plan.resources.cpus.into()),
        gpu => plan.gpu,
        options => words(options, role)?,
    })
}

/// What a role's job tells sbatch beside what its processes need.
fn words(options: &Options, role: Role) -> anyhow::Result<Vec<String>> {
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
    Ok(words)
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
