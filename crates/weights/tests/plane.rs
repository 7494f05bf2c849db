//! Both ends of the weight plane, with nothing between them: a publisher and receivers in one process, over
//! loopback.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helper functions too")]

use std::time::Duration;

use collective::Store;
use model::buffer::PackedWeights;
use model::{Architecture, Dimensions, Groups as _, ModelConfig, buffer, tensor_bytes};
use service::grpc::Listener;
use tch::{Device, Kind};
use tokio::task::JoinSet;
use types::link::actor::BroadcastGroup;
use types::{BroadcastGroupId, Manifest, MemberId, PolicyVersion, TensorEntry, TensorLayout, WeightHash};
use weights::{
    Error, GroupEvent, Member, Prepare, PublishEvent, Publisher, PublisherConfig, PullError, ReceiveEvent,
    Receiver, ReceiverConfig, Snapshots, WeightService,
};

/// Longer than anything that goes well here takes.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Short enough to wait for in a test.
const SHORT_TIMEOUT: Duration = Duration::from_secs(1);

fn model() -> ModelConfig {
    let dimensions = Dimensions {
        vocab_size: 64,
        hidden_size: 32,
        intermediate_size: 48,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        max_positions: 64,
    };
    ModelConfig::new(Architecture::Qwen2, dimensions).unwrap()
}

/// A version's weights as the learner packs them.
fn trained(version: u64) -> Vec<u8> {
    let weights = model::Weights::random(&model(), version, Kind::Float, Device::Cpu);
    buffer::pack(weights.flats(), Kind::BFloat16)
}

/// Copies the weights back into one buffer, group by group, as an engine reads them.
struct Repack;

impl Prepare for Repack {
    type Prepared = Vec<u8>;
    type Error = model::raw::Error;

    fn prepare(&mut self, _: PolicyVersion, weights: &PackedWeights<'_>) -> Result<Vec<u8>, Self::Error> {
        let groups = 0..model::Layout::new(&model()).groups.len();
        let mut bytes = Vec::new();
        for index in groups {
            bytes.extend(tensor_bytes(&weights.group(index)?));
        }
        Ok(bytes)
    }
}

/// A learner's end, and where groups meet.
struct Learner {
    store: Store,
    snapshots: Snapshots,
    publisher: Publisher,
}

impl Learner {
    fn start(timeout: Duration) -> Self {
        let snapshots = Snapshots::default();
        let member = Member { name: name("learner"), device: Device::Cpu, timeout };
        let config = PublisherConfig { member, model: model(), kind: Kind::BFloat16 };
        let publisher = Publisher::start(config, snapshots.clone()).unwrap();
        Self { store: Store::serve("127.0.0.1", 0, TIMEOUT).unwrap(), snapshots, publisher }
    }

    async fn event(&mut self) -> PublishEvent {
        soon(self.publisher.next_event()).await.unwrap()
    }

    /// Describes and keeps a version.
    async fn keep(&mut self, version: u64) -> Manifest {
        self.publisher.keep(PolicyVersion(version), trained(version));
        match self.event().await {
            PublishEvent::Kept(manifest) => manifest,
            other => panic!("instead of a snapshot: {other:?}"),
        }
    }

    fn group(&self, id: u64, receivers: &[&str]) -> BroadcastGroup {
        let members = [&["learner"], receivers].concat().into_iter().map(name).collect();
        BroadcastGroup {
            id: BroadcastGroupId(id),
            store: format!("127.0.0.1:{}", self.store.port()),
            members,
        }
    }
}

fn receiver(own: &str, timeout: Duration) -> Receiver<Repack> {
    let member = Member { name: name(own), device: Device::Cpu, timeout };
    Receiver::start(ReceiverConfig { member, model: model() }, Repack).unwrap()
}

fn name(text: &str) -> MemberId {
    text.parse().unwrap()
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(TIMEOUT, future).await.unwrap()
}

async fn event(receiver: &mut Receiver<Repack>) -> ReceiveEvent<Vec<u8>> {
    soon(receiver.next_event()).await.unwrap()
}

/// Forms a group of the learner and these receivers.
async fn form(learner: &mut Learner, group: &BroadcastGroup, receivers: &mut [&mut Receiver<Repack>]) {
    learner.publisher.join(group.clone()).unwrap();
    for receiver in &*receivers {
        receiver.join(group.clone()).unwrap();
    }
    let sent = learner.event().await;
    assert!(matches!(sent, PublishEvent::Group(GroupEvent::Ready(id)) if id == group.id), "{sent:?}");
    for receiver in receivers {
        let received = event(receiver).await;
        assert!(
            matches!(received, ReceiveEvent::Group(GroupEvent::Ready(id)) if id == group.id),
            "{received:?}"
        );
    }
}

async fn arrived(receiver: &mut Receiver<Repack>, expected: &Manifest) {
    match event(receiver).await {
        ReceiveEvent::Arrived { manifest, weights } => {
            assert_eq!(manifest, *expected);
            assert!(weights == trained(expected.version().0));
        }
        other => panic!("instead of weights: {other:?}"),
    }
}

#[tokio::test]
async fn members_of_a_group_receive_every_version() {
    let mut learner = Learner::start(TIMEOUT);
    let (mut first, mut second) = (receiver("actor-1", TIMEOUT), receiver("actor-2", TIMEOUT));
    let group = learner.group(1, &["actor-1", "actor-2"]);
    form(&mut learner, &group, &mut [&mut first, &mut second]).await;
    for version in 1..=3 {
        let manifest = learner.keep(version).await;
        first.receive(group.id, manifest.clone()).unwrap();
        second.receive(group.id, manifest.clone()).unwrap();
        learner.publisher.broadcast(group.id, manifest.version()).unwrap();
        arrived(&mut first, &manifest).await;
        arrived(&mut second, &manifest).await;
        let sent = learner.event().await;
        assert!(
            matches!(sent, PublishEvent::Sent { version, .. } if version == manifest.version()),
            "{sent:?}"
        );
    }
}

#[tokio::test]
async fn weights_with_a_wrong_hash_are_refused_and_end_the_group() {
    let mut learner = Learner::start(TIMEOUT);
    let (mut sound, mut misled) = (receiver("actor-1", TIMEOUT), receiver("actor-2", TIMEOUT));
    let group = learner.group(1, &["actor-1", "actor-2"]);
    form(&mut learner, &group, &mut [&mut sound, &mut misled]).await;
    let manifest = learner.keep(1).await;
    let mut tensors = manifest.tensors().to_vec();
    let (name, shape) = (tensors[2].name().to_owned(), tensors[2].shape().to_vec());
    let layout = TensorLayout { name, shape, dtype: tensors[2].dtype() };
    tensors[2] = TensorEntry::new(layout, WeightHash([7; 32])).unwrap();
    let forged = Manifest::new(manifest.version(), tensors).unwrap();
    sound.receive(group.id, manifest.clone()).unwrap();
    misled.receive(group.id, forged).unwrap();
    learner.publisher.broadcast(group.id, manifest.version()).unwrap();
    arrived(&mut sound, &manifest).await;
    match event(&mut misled).await {
        ReceiveEvent::Failed { version, error } => {
            assert_eq!(version, manifest.version());
            let message = error.to_string();
            assert!(
                message.contains(manifest.tensors()[2].name()) && message.contains("has hash"),
                "{message}"
            );
        }
        other => panic!("instead of a refusal: {other:?}"),
    }
    misled.receive(group.id, manifest).unwrap();
    let refused = event(&mut misled).await;
    assert!(matches!(refused, ReceiveEvent::Failed { error: Error::NotMember(id), .. } if id == group.id));
}

#[tokio::test]
async fn a_receiver_that_never_arrives_costs_its_group_and_nothing_else() {
    let mut learner = Learner::start(SHORT_TIMEOUT);
    let mut present = receiver("actor-1", SHORT_TIMEOUT);
    let never = learner.group(1, &["actor-1", "absent"]);
    learner.publisher.join(never.clone()).unwrap();
    present.join(never.clone()).unwrap();
    let failed = learner.event().await;
    match failed {
        PublishEvent::Group(GroupEvent::Failed { group, error }) => {
            assert_eq!(group, never.id);
            let message = error.to_string();
            assert!(message.contains("rank 2"), "it does not say who is missing: {message}");
        }
        other => panic!("instead of a failure: {other:?}"),
    }
    let failed = event(&mut present).await;
    assert!(matches!(failed, ReceiveEvent::Group(GroupEvent::Failed { group, .. }) if group == never.id));
    let group = learner.group(2, &["actor-1"]);
    form(&mut learner, &group, &mut [&mut present]).await;
    let manifest = learner.keep(1).await;
    present.receive(group.id, manifest.clone()).unwrap();
    learner.publisher.broadcast(group.id, manifest.version()).unwrap();
    arrived(&mut present, &manifest).await;
}

#[tokio::test]
async fn a_member_that_leaves_ends_the_broadcast_at_once() {
    let mut learner = Learner::start(TIMEOUT);
    let mut leaving = receiver("actor-1", TIMEOUT);
    let group = learner.group(1, &["actor-1"]);
    form(&mut learner, &group, &mut [&mut leaving]).await;
    drop(leaving);
    let manifest = learner.keep(1).await;
    learner.publisher.broadcast(group.id, manifest.version()).unwrap();
    let failed = learner.event().await;
    assert!(matches!(failed, PublishEvent::NotSent { group: id, .. } if id == group.id), "{failed:?}");
    learner.publisher.broadcast(group.id, manifest.version()).unwrap();
    let failed = learner.event().await;
    assert!(matches!(failed, PublishEvent::NotSent { error: Error::NotMember(_), .. }), "{failed:?}");
}

#[tokio::test]
async fn only_members_on_the_list_join() {
    let learner = Learner::start(TIMEOUT);
    let mut stranger = receiver("stranger", TIMEOUT);
    stranger.join(learner.group(1, &["actor-1"])).unwrap();
    let refused = event(&mut stranger).await;
    let expected = "stranger is not on the list of broadcast group g1";
    match refused {
        ReceiveEvent::Group(GroupEvent::Failed { error, .. }) => assert_eq!(error.to_string(), expected),
        other => panic!("instead of a refusal: {other:?}"),
    }
}

#[tokio::test]
async fn a_late_joiner_pulls() {
    let mut learner = Learner::start(TIMEOUT);
    let replaced = learner.keep(1).await;
    let older = learner.keep(2).await;
    let newest = learner.keep(3).await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), "{}").unwrap();
    let listener = Listener::bind("listen", "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let source = listener.address.to_string();
    let service = WeightService::new(folder.path(), learner.snapshots.clone()).unwrap();
    let mut serving = JoinSet::new();
    serving.spawn(service.router().serve_with_incoming(listener.incoming()));

    let mut late = receiver("late", TIMEOUT);
    for manifest in [&older, &newest] {
        let description = weights::describe(&source, manifest.hash()).await.unwrap();
        assert_eq!(description.manifest, *manifest);
        let files: Vec<&str> = description.files.iter().map(|file| file.name()).collect();
        assert_eq!(files, ["config.json"]);
        let pulled = weights::pull(&source, manifest).await.unwrap();
        late.unpack(description.manifest, pulled).unwrap();
        arrived(&mut late, manifest).await;
    }
    let gone = weights::describe(&source, replaced.hash()).await.unwrap_err();
    assert!(matches!(gone, PullError::Status(_)) && gone.to_string().contains("newer version"), "{gone}");
    let gone = weights::pull(&source, &replaced).await.unwrap_err();
    assert!(matches!(gone, PullError::Status(_)), "it was tried again: {gone}");

    let mut damaged = weights::pull(&source, &newest).await.unwrap().to_vec();
    damaged[100] ^= 1;
    late.unpack(newest, damaged.into()).unwrap();
    let refused = event(&mut late).await;
    assert!(matches!(refused, ReceiveEvent::Failed { .. }), "{refused:?}");
}
