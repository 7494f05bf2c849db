//! An engine on its own thread, with several clients.

use std::collections::BTreeMap;

use engine::{Backend, EngineClient, EngineHandle, EngineParts, Error, Event, Finished, Refusal, Request};
use futures::FutureExt as _;
use types::{PolicyVersion, SamplingParams};

use crate::fixture::{
    BACKENDS, config_of, engine, model_of, policy, prompt, request, run, siblings, small_config, small_model,
};

async fn start() -> EngineHandle {
    start_with(Backend::Native).await
}

async fn start_with(backend: Backend) -> EngineHandle {
    let (model, weights) = small_model();
    let config = config_of(backend);
    let weights = policy(&model, &weights, &config, 0);
    EngineHandle::start(EngineParts { model, weights, tokenizer: None, config }).await.unwrap()
}

fn requests(stream: u64) -> Vec<Request> {
    let sampling = SamplingParams { max_new_tokens: 30, ..SamplingParams::default() };
    (0..10).map(|id| request(id, prompt(5 + id as usize, stream), sampling.clone())).collect()
}

/// Reads until this many responses have ended; the future that reads is dropped again and again.
async fn read(client: &mut EngineClient, count: usize) -> BTreeMap<u64, Finished> {
    let mut finished = BTreeMap::new();
    while finished.len() < count {
        let _ = client.next_event().now_or_never().map(|event| keep(event.unwrap(), &mut finished));
        if finished.len() < count {
            keep(client.next_event().await.unwrap(), &mut finished);
        }
    }
    finished
}

fn keep(event: Event, finished: &mut BTreeMap<u64, Finished>) {
    if let Event::Finished(response) = event {
        assert!(finished.insert(response.id, *response).is_none(), "a response ended twice");
    }
}

#[tokio::test]
async fn clients_share_an_engine_and_nothing_else() {
    let handle = start().await;
    let (mut one, mut two) = (handle.client().await.unwrap(), handle.client().await.unwrap());
    assert!(one.submit(requests(1)).await.unwrap().iter().all(Result::is_ok));
    assert!(two.submit(requests(2)).await.unwrap().iter().all(Result::is_ok));
    let (model, weights) = small_model();
    for (client, stream) in [(&mut two, 2), (&mut one, 1)] {
        let alone = run(&mut engine(&model, &weights, &small_config()), &requests(stream));
        assert_eq!(read(client, 10).await, alone, "client {stream}");
    }
    assert_eq!(handle.totals().await.unwrap().finished, 20);
}

#[tokio::test]
async fn tokens_are_streamed_in_order_before_the_end() {
    let handle = start().await;
    let mut client = handle.client().await.unwrap();
    let request = Request { stream: true, ..requests(0).remove(3) };
    client.submit(vec![request]).await.unwrap().remove(0).unwrap();
    let mut tokens = Vec::new();
    let response = loop {
        match client.next_event().await.unwrap() {
            Event::Token(token) => {
                assert_eq!((token.id, token.index), (3, tokens.len()));
                tokens.push(token.token);
            }
            Event::Finished(response) => break response,
            Event::Failed { problem, .. } => panic!("{problem}"),
        }
    };
    assert_eq!(response.response_tokens, tokens);
}

#[tokio::test]
async fn a_dropped_client_takes_its_responses_with_it() {
    let handle = start().await;
    let gone = handle.client().await.unwrap();
    let endless = SamplingParams { max_new_tokens: 240, ..SamplingParams::default() };
    let ids: Vec<u64> = (0..500).collect();
    gone.submit(vec![siblings(&ids, prompt(5, 0), endless)]).await.unwrap().remove(0).unwrap();
    drop(gone);
    let mut client = handle.client().await.unwrap();
    client.submit(requests(1)).await.unwrap();
    assert_eq!(read(&mut client, 10).await.len(), 10);
    let (totals, load) = (handle.totals().await.unwrap(), handle.load().await.unwrap());
    assert!(totals.cancelled > 0, "{totals:?}");
    assert_eq!((totals.cancelled + totals.finished, load.running + load.waiting), (510, 0));
}

#[tokio::test]
async fn refusals_and_cancelling_are_each_clients_own() {
    let handle = start().await;
    let (one, two) = (handle.client().await.unwrap(), handle.client().await.unwrap());
    let endless = || {
        let sampling = SamplingParams { max_new_tokens: 240, ..SamplingParams::default() };
        let ids: Vec<u64> = (0..8).collect();
        siblings(&ids, prompt(5, 0), sampling)
    };
    assert_eq!(one.submit(vec![endless(), endless()]).await.unwrap(), [Ok(()), Err(Refusal::DuplicateId(0))]);
    assert_eq!(two.submit(vec![endless()]).await.unwrap(), [Ok(())]);
    assert!(one.cancel(7).await.unwrap());
    assert!(!one.cancel(7).await.unwrap());
    assert!(two.cancel(7).await.unwrap());
    // A million tokens that nobody has read yet are enough.
    let ids: Vec<u64> = (100..5000).collect();
    let sampling = SamplingParams { max_new_tokens: 250, ..SamplingParams::default() };
    let many = Request { stream: true, ..siblings(&ids, prompt(5, 0), sampling) };
    let outcome = one.submit(vec![many]).await.unwrap().remove(0);
    assert!(matches!(outcome, Err(Refusal::Unread { events, room }) if events > room), "{outcome:?}");
}

#[tokio::test]
async fn weights_are_swapped_under_way_and_wrong_ones_refused() {
    for backend in BACKENDS {
        let handle = start_with(backend).await;
        let mut client = handle.client().await.unwrap();
        let (model, weights) = model_of(97, 12);
        let (other_model, other) = model_of(98, 12);
        let config = config_of(backend);
        let wrong = handle.swap_weights(policy(&other_model, &other, &config, 1)).await.unwrap_err();
        assert!(matches!(wrong, Error::Weights), "{wrong}");
        handle.swap_weights(policy(&model, &weights, &config, 7)).await.unwrap();
        client.submit(requests(0)).await.unwrap();
        let finished = read(&mut client, 10).await;
        let alone = run(&mut engine(&model, &weights, &config), &requests(0));
        for (id, response) in &finished {
            assert_eq!(response.spans[0].version, PolicyVersion(7));
            assert_eq!(response.response_tokens, alone[id].response_tokens, "{backend:?} response {id}");
        }
    }
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let (model, weights) = small_model();
    let weights = policy(&model, &weights, &small_config(), 0);
    let config = engine::EngineConfig { max_sequences: Some(0), ..small_config() };
    let error =
        EngineHandle::start(EngineParts { model, weights, tokenizer: None, config }).await.unwrap_err();
    assert!(error.to_string().contains("max_sequences is 0"), "{error}");
}
