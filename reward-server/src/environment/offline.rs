//! An environment without a ring, for a program that draws the turns itself (`sluice eval`, `sluice
//! generate`): the same episodes with the same bounds.

use std::time::Duration;

use service::CancellationToken;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use types::RunId;
use types::link::environment::{EnvironmentReply, EnvironmentRequest};

use crate::config::Config;

use super::known_fields::KnownFields;
use super::{Environment, EpisodeHost, FieldsSource, Said, carry_episodes};

/// An environment that has started.
#[derive(Debug)]
pub struct OfflineEpisodes {
    host: EpisodeHost,
    fields: KnownFields,
    places: usize,
}

impl OfflineEpisodes {
    /// Starts the environment of a configuration; none where it has none.
    ///
    /// # Errors
    /// Where the sandbox cannot be started, the operator's file or server cannot be used, or the policy's
    /// chat template cannot be read.
    pub async fn start(config: &Config) -> anyhow::Result<Option<Self>> {
        let mut config = config.clone();
        let Some(environment) = &mut config.environment else { return Ok(None) };
        // No episode waits for the interpreter of another one: how long that takes would decide how it ends.
        let places = environment.places().places;
        // The place of an episode that has ended is free a moment later than its end is known.
        environment.bounds.episodes = 2 * places;
        let Some(environment) = Environment::start(&config, CancellationToken::new()).await? else {
            return Ok(None);
        };
        let run = RunId::try_from(service::unique_name("offline"))?;
        let fields = KnownFields::default();
        let host = EpisodeHost { environment, fields: FieldsSource::Here(fields.clone()), run };
        Ok(Some(Self { host, fields, places }))
    }

    /// Episodes that go on at a time without one waiting for another.
    pub fn places(&self) -> usize {
        self.places
    }

    /// How long an answer may take.
    pub fn timeout(&self) -> Duration {
        self.host.environment.longest()
    }

    /// Where the fields of prompts are said.
    pub fn fields(&self) -> KnownFields {
        self.fields.clone()
    }

    /// Carries episodes until nobody asks any more.
    ///
    /// # Errors
    /// What no correct program asks.
    pub async fn carry(
        self,
        requests: mpsc::Receiver<EnvironmentRequest>,
        replies: mpsc::Sender<EnvironmentReply>,
    ) -> anyhow::Result<()> {
        let (said, mut heard) = mpsc::channel::<Said>(self.places);
        let carried = async move {
            let requests = ReceiverStream::new(requests).map(Ok);
            carry_episodes(self.host, requests, said).await.map_err(anyhow::Error::msg)
        };
        let handed_on = async move {
            while let Some(Ok(reply)) = heard.recv().await {
                if replies.send(reply).await.is_err() {
                    return;
                }
            }
        };
        let (carried, ()) = tokio::join!(carried, handed_on);
        carried
    }
}
