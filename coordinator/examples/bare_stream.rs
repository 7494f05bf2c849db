//! The yardstick of `load_client`: how many scored rollouts a second the bare gRPC stream carries.
//! `bare_stream serve ADDRESS` decodes each one, converts it and acknowledges it: no journal, no state, no
//! batches. `bare_stream send ADDRESS PID SECONDS` sends them as fast as they are taken, [`IN_FLIGHT`] at a
//! time, and says how many that were and what they cost the process PID.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a measurement")]

use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use proto::pb;
use proto::pb::coordinator_client::CoordinatorClient;
use proto::pb::coordinator_server::{Coordinator, CoordinatorServer};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use types::link::reward::RewardReport;

#[path = "load/measure.rs"]
mod measure;

/// Rollouts sent and not yet acknowledged, as `load_client` has them with 100 actors.
const IN_FLIGHT: usize = 800;

type Commands<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

struct Bare;

#[tonic::async_trait]
impl Coordinator for Bare {
    type ActStream = Commands<pb::ActorCommand>;
    type RewardStream = Commands<pb::RewardCommand>;
    type LearnStream = Commands<pb::LearnerCommand>;

    async fn act(&self, _: Request<Streaming<pb::ActorReport>>) -> Result<Response<Self::ActStream>, Status> {
        Err(Status::unimplemented("only rewards"))
    }

    async fn reward(
        &self,
        request: Request<Streaming<pb::RewardReport>>,
    ) -> Result<Response<Self::RewardStream>, Status> {
        let acknowledgements = request.into_inner().map(|report| {
            let RewardReport::Scored(scored) = report?.try_into()? else {
                return Err(Status::invalid_argument("only scored rollouts"));
            };
            let ids = vec![scored.rollout().id().into()];
            let command = pb::reward_command::Command::Recorded(pb::RecordedRollouts { ids });
            Ok(pb::RewardCommand { command: Some(command) })
        });
        Ok(Response::new(Box::pin(acknowledgements)))
    }

    async fn learn(
        &self,
        _: Request<Streaming<pb::LearnerReport>>,
    ) -> Result<Response<Self::LearnStream>, Status> {
        Err(Status::unimplemented("only rewards"))
    }

    async fn fields(&self, _: Request<pb::FieldsRequest>) -> Result<Response<pb::FieldsReply>, Status> {
        Err(Status::unimplemented("no reward server here"))
    }
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["serve", address] => {
            let server = tonic::transport::Server::builder().add_service(CoordinatorServer::new(Bare));
            server.serve(address.parse().unwrap()).await.unwrap();
        }
        ["send", address, pid, seconds] => send(address, pid, seconds.parse().unwrap()).await,
        _ => panic!("bare_stream serve ADDRESS, or bare_stream send ADDRESS PID SECONDS"),
    }
}

async fn send(address: &str, pid: &str, seconds: u64) {
    let mut client = CoordinatorClient::connect(format!("http://{address}")).await.unwrap();
    let (reports, outgoing) = mpsc::channel(256);
    for number in 0..IN_FLIGHT as u64 {
        let reports = reports.clone();
        tokio::spawn(async move { reports.send(measure::scored(id(number), number, 0)).await });
    }
    let mut commands = client.reward(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
    let (begun, cpu) = (Instant::now(), measure::cpu_seconds(pid));
    let mut number = 0;
    while begun.elapsed() < Duration::from_secs(seconds) {
        commands.message().await.unwrap().unwrap();
        number += 1;
        reports.send(measure::scored(id(number), number, 0)).await.unwrap();
    }
    let span = begun.elapsed().as_secs_f64();
    let cores = (measure::cpu_seconds(pid) - cpu) / span;
    println!("{cores:.2} cores, {:.0} scores/s", number as f64 / span);
}

fn id(number: u64) -> pb::RolloutId {
    pb::RolloutId { ordinal: number, ..pb::RolloutId::default() }
}
