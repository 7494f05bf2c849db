//! Both ends of the weight plane, with nothing between them: a publisher and receivers in one process, over
//! loopback.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helper functions too")]

#[path = "plane/slow_link.rs"]
mod slow_link;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use collective::Store;
use futures::{Stream, StreamExt as _};
use model::buffer::PackedWeights;
use model::{Architecture, Dimensions, Groups as _, ModelConfig, buffer, tensor_bytes};
use proto::pb;
use proto::pb::weight_source_server::{WeightSource, WeightSourceServer};
use service::Security;
use service::grpc::Listener;
use tch::{Device, Kind};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use types::link::actor::{BroadcastGroup, GroupBackend};
use types::{
    BroadcastGroupId, Manifest, MemberId, ModelDescription, PolicyVersion, TensorEntry, TensorLayout,
    WeightHash,
};
use weights::{
    Error, GroupEvent, Member, ModelFiles, Prepare, PublishEvent, Publisher, PublisherConfig, PullError,
    PullOrder, PulledWeights, ReceiveEvent, Receiver, ReceiverConfig, Snapshot, Snapshots, WeightService,
};

/// Longer than anything that goes well here takes.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Short enough to wait for in a test.
const SHORT_TIMEOUT: Duration = Duration::from_secs(1);

fn model() -> ModelConfig {
    let dimensions = Dimensions {
        // Large enough that a broadcast does not fit the buffers of a connection.
        vocab_size: 65_536,
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
        let snapshots = Snapshots::of_learner();
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
            backend: GroupBackend::Gloo,
        }
    }
}

fn receiver(own: &str, timeout: Duration) -> Receiver<Repack> {
    let member = Member { name: name(own), device: Device::Cpu, timeout };
    Receiver::start(ReceiverConfig { member, model: model(), shared: None }, Repack).unwrap()
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
async fn who_leaves_a_group_does_not_wait_for_a_member_that_has_stopped() {
    let mut learner = Learner::start(TIMEOUT);
    let (mut present, mut stopped) = (receiver("actor-1", TIMEOUT), receiver("actor-2", TIMEOUT));
    let group = learner.group(1, &["actor-1", "actor-2"]);
    form(&mut learner, &group, &mut [&mut present, &mut stopped]).await;
    let manifest = learner.keep(1).await;
    learner.publisher.broadcast(group.id, manifest.version()).unwrap();
    present.receive(group.id, manifest.clone()).unwrap();
    // The second actor never takes part, so that nobody comes to an end.
    let ended = tokio::time::timeout(SHORT_TIMEOUT, learner.publisher.next_event()).await;
    assert!(ended.is_err(), "the broadcast ended without one of its members: {ended:?}");
    let left = Instant::now();
    learner.publisher.leave(group.id).unwrap();
    let failed = learner.event().await;
    assert!(matches!(failed, PublishEvent::NotSent { group: id, .. } if id == group.id), "{failed:?}");
    // The other one has all of it by now, or hears of the end.
    let ended = event(&mut present).await;
    assert!(matches!(ended, ReceiveEvent::Arrived { .. } | ReceiveEvent::Failed { .. }), "{ended:?}");
    assert!(left.elapsed() < TIMEOUT / 4, "it took {:?}", left.elapsed());

    let next = learner.group(2, &["actor-1"]);
    form(&mut learner, &next, &mut [&mut present]).await;
    learner.publisher.broadcast(next.id, manifest.version()).unwrap();
    present.receive(next.id, manifest.clone()).unwrap();
    arrived(&mut present, &manifest).await;
}

#[tokio::test]
async fn a_group_that_was_left_while_it_formed_does_not_stand() {
    let learner = Learner::start(TIMEOUT);
    let mut early = receiver("actor-1", TIMEOUT);
    let group = learner.group(1, &["actor-1"]);
    early.join(group.clone()).unwrap();
    early.leave(group.id).unwrap();
    learner.publisher.join(group.clone()).unwrap();
    let failed = event(&mut early).await;
    assert!(
        matches!(failed, ReceiveEvent::Group(GroupEvent::Failed { error: Error::Left(id), .. }) if id == group.id),
        "{failed:?}"
    );
}

/// Serves snapshots with a `config.json`; the address.
async fn serve(serving: &mut JoinSet<()>, snapshots: Snapshots) -> String {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), "{}").unwrap();
    let listener = Listener::bind("listen", "127.0.0.1:0".parse().unwrap(), &Security::open()).await.unwrap();
    let source = listener.address.to_string();
    let service = WeightService::new(ModelFiles::of_folder(folder.path()).unwrap(), snapshots);
    serving.spawn(async move {
        service.router(&Security::open()).serve_with_incoming(listener.incoming()).await.unwrap();
    });
    source
}

/// Orders a pull: the way to its source, and the bytes that have come.
fn order(hash: WeightHash, source: &str) -> (PullOrder, watch::Sender<String>, Arc<AtomicU64>) {
    let (sender, source) = watch::channel(source.to_owned());
    let received_bytes = Arc::<AtomicU64>::default();
    (
        PullOrder { hash, source, received_bytes: Arc::clone(&received_bytes), security: Security::open() },
        sender,
        received_bytes,
    )
}

async fn pull(source: &str, hash: WeightHash) -> Result<PulledWeights, PullError> {
    let (order, _sender, _) = order(hash, source);
    soon(weights::pull(order)).await
}

#[tokio::test]
async fn a_late_joiner_pulls() {
    let mut learner = Learner::start(TIMEOUT);
    let replaced = learner.keep(1).await;
    let older = learner.keep(2).await;
    let newest = learner.keep(3).await;
    let mut serving = JoinSet::new();
    let source = serve(&mut serving, learner.snapshots.clone()).await;

    let mut late = receiver("late", TIMEOUT);
    for manifest in [&older, &newest] {
        let PulledWeights { description, buffer } = pull(&source, manifest.hash()).await.unwrap();
        assert_eq!(description.manifest, *manifest);
        let files: Vec<&str> = description.files.iter().map(|file| file.name()).collect();
        assert_eq!(files, ["config.json"]);
        late.unpack(description.manifest, buffer).unwrap();
        arrived(&mut late, manifest).await;
    }
    let gone = pull(&source, replaced.hash()).await.unwrap_err();
    assert!(matches!(gone, PullError::Status(_)) && gone.to_string().contains("newer version"), "{gone}");

    let mut damaged = pull(&source, newest.hash()).await.unwrap().buffer.to_vec();
    damaged[100] ^= 1;
    late.unpack(newest, damaged.into()).unwrap();
    let refused = event(&mut late).await;
    assert!(matches!(refused, ReceiveEvent::Failed { .. }), "{refused:?}");
}

#[tokio::test]
async fn what_arrived_can_be_pulled_on_and_what_is_damaged_cannot() {
    let mut learner = Learner::start(TIMEOUT);
    let manifest = learner.keep(1).await;
    let buffer = learner.snapshots.newest().unwrap().buffer.clone();
    let shared = Snapshots::of_actor();
    let member = Member { name: name("actor-1"), device: Device::Cpu, timeout: TIMEOUT };
    let config = ReceiverConfig { member, model: model(), shared: Some(shared.clone()) };
    let mut sharing = Receiver::start(config, Repack).unwrap();
    let mut damaged = buffer.to_vec();
    damaged[100] ^= 1;
    sharing.unpack(manifest.clone(), damaged.into()).unwrap();
    let refused = event(&mut sharing).await;
    assert!(matches!(refused, ReceiveEvent::Failed { .. }), "{refused:?}");
    assert!(shared.newest().is_none(), "damaged weights are shared");

    sharing.unpack(manifest.clone(), buffer.clone()).unwrap();
    arrived(&mut sharing, &manifest).await;
    // The same by broadcast.
    let next = learner.keep(2).await;
    let group = learner.group(1, &["actor-1"]);
    form(&mut learner, &group, &mut [&mut sharing]).await;
    learner.publisher.broadcast(group.id, next.version()).unwrap();
    sharing.receive(group.id, next.clone()).unwrap();
    arrived(&mut sharing, &next).await;
    let mut serving = JoinSet::new();
    let source = serve(&mut serving, shared).await;
    let pulled = pull(&source, next.hash()).await.unwrap();
    assert!(pulled.buffer == trained(2));
}

/// A source that sends the first part of a buffer and then nothing more.
struct Stalling {
    snapshot: Arc<Snapshot>,
    bytes: usize,
}

#[tonic::async_trait]
impl WeightSource for Stalling {
    type PullStream = Pin<Box<dyn Stream<Item = Result<pb::WeightChunk, Status>> + Send>>;

    async fn describe(
        &self,
        _: Request<pb::DescribeRequest>,
    ) -> Result<Response<pb::ModelDescription>, Status> {
        let description = ModelDescription { files: Vec::new(), manifest: self.snapshot.manifest.clone() };
        Ok(Response::new(description.into()))
    }

    async fn pull(&self, _: Request<pb::PullRequest>) -> Result<Response<Self::PullStream>, Status> {
        let chunk = pb::WeightChunk { offset: 0, data: self.snapshot.buffer.slice(..self.bytes) };
        let chunks = futures::stream::iter([Ok(chunk)]).chain(futures::stream::pending());
        Ok(Response::new(Box::pin(chunks)))
    }
}

async fn stall(serving: &mut JoinSet<()>, snapshot: Arc<Snapshot>, bytes: usize) -> String {
    let listener = Listener::bind("listen", "127.0.0.1:0".parse().unwrap(), &Security::open()).await.unwrap();
    let source = listener.address.to_string();
    let service = WeightSourceServer::new(Stalling { snapshot, bytes });
    let service = service.max_encoding_message_size(proto::MAX_MESSAGE_BYTES);
    serving.spawn(async move {
        let server = service::grpc::server(&Security::open(), &[]).add_service(service);
        server.serve_with_incoming(listener.incoming()).await.unwrap();
    });
    source
}

#[tokio::test]
async fn a_pull_goes_on_from_another_source_where_it_is() {
    let mut learner = Learner::start(TIMEOUT);
    let manifest = learner.keep(1).await;
    let first_part = 1_000_003;
    let mut serving = JoinSet::new();
    let stalling = stall(&mut serving, learner.snapshots.newest().unwrap(), first_part).await;
    let whole = serve(&mut serving, learner.snapshots.clone()).await;

    let (order, source, received) = order(manifest.hash(), &stalling);
    let mut pulling = JoinSet::new();
    pulling.spawn(weights::pull(order));
    soon(async {
        while received.load(Ordering::Relaxed) < first_part as u64 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    source.send_replace(whole);
    let pulled = soon(pulling.join_next()).await.unwrap().unwrap().unwrap();
    assert!(pulled.buffer == trained(1));
    assert_eq!(received.load(Ordering::Relaxed), manifest.total_bytes(), "something came twice");
}

#[tokio::test]
async fn a_pull_ends_when_it_is_given_up_and_when_it_would_bring_something_else() {
    let mut learner = Learner::start(TIMEOUT);
    let other = learner.keep(1).await;
    let snapshot = learner.snapshots.newest().unwrap();
    let wanted = learner.keep(2).await;
    let mut serving = JoinSet::new();
    let stalling = stall(&mut serving, snapshot, 10).await;
    let error = pull(&stalling, wanted.hash()).await.unwrap_err();
    assert!(matches!(error, PullError::OtherWeights { .. }), "{error}");

    let (order, source, _) = order(other.hash(), &stalling);
    let mut pulling = JoinSet::new();
    pulling.spawn(weights::pull(order));
    drop(source);
    let error = soon(pulling.join_next()).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error, PullError::GivenUp), "{error}");
}
