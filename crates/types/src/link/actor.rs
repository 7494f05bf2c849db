//! Coordinator and actor.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    BroadcastGroupId, Incarnation, LeaseId, Manifest, MemberId, PolicyVersion, Prompt, RolloutFailure,
    RolloutId, RunId, Sampling, Vocabulary, WeightHash,
};

/// An actor introduces itself: the first message on every stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActorHello {
    /// Its name, unique in the run.
    pub member: MemberId,
    /// Tells this start of its process from the ones before.
    pub incarnation: Incarnation,
    /// The run it worked for before the stream broke; none on the first contact.
    pub run: Option<RunId>,
    /// Attempts it still works on or still holds unacknowledged, so that they are not issued anew.
    pub holding: Vec<RolloutId>,
    /// The weights it uses.
    pub weights: Option<(PolicyVersion, WeightHash)>,
    /// `host:port` where others pull the weights that it uses, if it shares them.
    pub source: Option<String>,
    /// That of the policy's tokenizer, which comes with its first weights; none of a release that does not
    /// say.
    #[serde(default)]
    pub vocabulary: Option<Vocabulary>,
    /// The GPU on which it receives weights, by a name that no other has; none of one that computes on the
    /// CPU, or does not say.
    #[serde(default)]
    pub gpu: Option<String>,
}

/// How loaded an actor is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActorLoad {
    /// Responses that it could start now.
    pub free_slots: u32,
    /// The newest lease it had received when it counted: later ones are not yet in `free_slots`.
    pub last_lease: LeaseId,
    /// Responses being generated.
    pub running: u32,
    /// Finished rollouts not yet acknowledged.
    pub unacknowledged: u32,
    /// Response tokens generated since its process started.
    pub generated_tokens: u64,
    /// Bytes of weights pulled since its process started: while they grow, a pull is alive.
    pub pulled_bytes: u64,
}

/// Actor to coordinator, after the hello.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActorReport {
    /// Sent when the load changes and at least once per heartbeat interval.
    Load(ActorLoad),
    /// These weights are in use from the next decode step on.
    WeightsConfirmed {
        /// Their version.
        version: PolicyVersion,
        /// Their hash, checked before the swap.
        hash: WeightHash,
    },
    /// A broadcast or pull failed; the version in use is unchanged.
    WeightsFailed {
        /// The version that did not arrive.
        version: PolicyVersion,
        /// Why, for a person.
        detail: String,
    },
    /// Its end of a broadcast group is connected.
    BroadcastGroupReady(BroadcastGroupId),
    /// Its end of a broadcast group could not be connected, or it broke.
    BroadcastGroupFailed {
        /// The group.
        group: BroadcastGroupId,
        /// Why, for a person.
        detail: String,
    },
    /// An attempt failed before it could be sent to a reward server.
    Failed(RolloutFailure),
    /// It takes no more leases and leaves when its last rollout is acknowledged.
    Draining,
}

/// What an actor has to know about the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ActorWelcome {
    /// The run.
    pub run: RunId,
    /// Seeds every response's sampling (see [`RolloutId::seed`]).
    pub seed: u64,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Work lease by lease in fixed batch composition (`docs/decisions.md`, D7).
    pub deterministic: bool,
    /// An actor that is silent for longer than this is taken for lost.
    pub heartbeat_timeout: Duration,
    /// Responses are episodes of several turns: the reward servers have an environment.
    pub episodes: bool,
}

/// One prompt of a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeasedPrompt {
    /// What to generate from.
    pub prompt: Prompt,
    /// The size of the whole group. In deterministic mode all of it is generated, so that the batch
    /// composition does not depend on what arrived before a crash.
    pub group_size: u16,
    /// The attempts wanted, by sibling.
    pub wanted: Vec<RolloutId>,
}

/// Prompts for one actor, for a limited time.
#[derive(Debug, Clone, PartialEq)]
pub struct Lease {
    /// Its number.
    pub id: LeaseId,
    /// The prompts.
    pub prompts: Vec<LeasedPrompt>,
    /// What is not scored within this span of its grant is issued anew.
    pub timeout: Duration,
    /// How tokens are drawn for it, where that is not as the run has it.
    pub sampling: Option<Sampling>,
}

/// A weight broadcast group to connect to (`docs/decisions.md`, D6).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BroadcastGroup {
    /// Its number; also the prefix of its keys in the store.
    pub id: BroadcastGroupId,
    /// `host:port` of the learner's TCPStore.
    pub store: String,
    /// The members by rank; rank 0 is the learner.
    pub members: Vec<MemberId>,
    /// What carries its tensors, for all members alike.
    #[serde(default)]
    pub backend: GroupBackend,
}

/// What carries the tensors of a broadcast group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupBackend {
    /// From one host's memory to another's.
    #[default]
    Gloo,
    /// From one GPU to another. It wants a GPU of its own for each member.
    Nccl,
}

/// Where a reward server listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RewardServerAddress {
    /// Its name.
    pub member: MemberId,
    /// `host:port` of its gRPC service.
    pub address: String,
}

/// Coordinator to actor.
#[derive(Debug, Clone, PartialEq)]
pub enum ActorCommand {
    /// First on the stream.
    Welcome(ActorWelcome),
    /// The reward servers now ready; replaces the list before.
    RewardServers(Vec<RewardServerAddress>),
    /// Fetch these weights point to point and confirm them. Replaces an order before: of other weights it is
    /// given up, of the same it goes on from this source.
    PullWeights {
        /// `host:port` of the weight service of the learner, or of an actor that shares its weights.
        source: String,
        /// The version to fetch.
        version: PolicyVersion,
        /// Its hash.
        hash: WeightHash,
    },
    /// Connect to a new broadcast group in the background.
    JoinBroadcastGroup(BroadcastGroup),
    /// The learner broadcasts these weights over this group now.
    ReceiveWeights {
        /// The group.
        group: BroadcastGroupId,
        /// What is sent.
        manifest: Manifest,
    },
    /// A broadcast group has ended: leave it, whatever is under way in it.
    LeaveBroadcastGroup(BroadcastGroupId),
    /// Work.
    Lease(Lease),
    /// Take no more work, finish or hand back what is leased, then leave.
    Drain,
    /// The run is over: leave now.
    Finish,
}
