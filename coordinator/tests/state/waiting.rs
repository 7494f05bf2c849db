//! What a run waits for is said in one sentence, whatever it is.

use coordinator::state::{ActorEvent, Event, LearnerEvent, Phase, RewardEvent, RunPlan, State};
use types::link::actor::{ActorLoad, ActorReport};
use types::link::reward::RewardHello;
use types::{Incarnation, Timestamp};

use crate::small_run::{actor_hello, learner_hello, manifest, plan};
use crate::world::World;

/// Lets the state take an event; what it waits for then.
fn after(state: &mut State, event: Event) -> String {
    let now = Timestamp(1_000_000);
    drop(state.apply(now, event));
    drop(state.settle(now));
    state.waiting_for()
}

fn actor(event: ActorEvent) -> Event {
    Event::Actor { member: "a".parse().unwrap(), event }
}

fn reward_server(event: RewardEvent) -> Event {
    Event::Reward { member: "r".parse().unwrap(), event }
}

#[test]
fn members_are_waited_for_in_the_order_in_which_a_run_needs_them() {
    let plan = RunPlan { batch_prompts: 3, ..plan() };
    let mut state = State::new(plan.clone());
    let hello = RewardHello {
        member: "r".parse().unwrap(),
        incarnation: Incarnation(1),
        run: None,
        address: "127.0.0.1:1".to_owned(),
        vocabulary: None,
    };
    let weights = manifest(0, 0);
    let confirmed = ActorReport::WeightsConfirmed { version: weights.version(), hash: weights.hash() };
    let free = ActorReport::Load(ActorLoad { free_slots: 8, ..ActorLoad::default() });
    let steps = [
        (Event::Started(Box::new(plan)), "the learner to connect"),
        (Event::Learner(LearnerEvent::Joined(learner_hello(1, weights))), "an actor to connect"),
        (actor(ActorEvent::Joined(actor_hello("a".parse().unwrap()))), "a reward server to connect"),
        (reward_server(RewardEvent::Joined(hello)), "an actor to receive v0 (1 connected)"),
        (actor(ActorEvent::Report(confirmed)), "responses to 0 prompts: batch b1 has 0 of its 3 groups"),
        (actor(ActorEvent::Report(free)), "responses to 2 prompts: batch b1 has 0 of its 3 groups"),
        (Event::Room { short_of: Some("a larger disk".to_owned()) }, "a larger disk"),
        (Event::Room { short_of: None }, "responses to 2 prompts: batch b1 has 0 of its 3 groups"),
        (reward_server(RewardEvent::Disconnected), "a reward server to connect"),
        (actor(ActorEvent::Disconnected), "an actor to connect"),
        (Event::Learner(LearnerEvent::Disconnected), "the learner to connect"),
    ];
    for (event, sentence) in steps {
        assert_eq!(after(&mut state, event), sentence);
    }
}

#[test]
fn a_run_that_ends_says_how() {
    let mut world = World::new(plan(), 1);
    while world.state.batches().formed() == world.state.batches().trained() {
        world.step();
    }
    assert_eq!(world.state.waiting_for(), "the learner to train batch b1");
    world.run_to_the_end(20_000);
    assert_eq!(world.state.waiting_for(), "nothing: the run is finished");

    let mut state = State::new(plan());
    after(&mut state, Event::Started(Box::new(plan())));
    after(&mut state, Event::Learner(LearnerEvent::Joined(learner_hello(1, manifest(0, 0)))));
    let weights = Some((manifest(0, 0).version(), manifest(0, 0).hash()));
    let hello = types::link::actor::ActorHello { weights, ..actor_hello("a".parse().unwrap()) };
    after(&mut state, actor(ActorEvent::Joined(hello)));
    let free = ActorReport::Load(ActorLoad { free_slots: 8, ..ActorLoad::default() });
    after(&mut state, actor(ActorEvent::Report(free)));
    let said = after(&mut state, Event::DrainRequested);
    assert_eq!(said, "actors to finish their leases and the learner to write a checkpoint");
    assert_eq!(state.phase(), Phase::Draining);
    let said = after(&mut state, actor(ActorEvent::Disconnected));
    assert_eq!(said, "nothing: the run was stopped and can be resumed");
}
