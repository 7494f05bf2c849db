//! Whose tokens are the policy's: the learner's word counts, before it an actor's.

use coordinator::state::{
    ActorEvent, Effect, Event, LearnerEvent, Notice, Refusal, RefusalCause, RewardEvent, Role, State,
};
use types::link::actor::{ActorCommand, ActorHello};
use types::link::learner::LearnerHello;
use types::link::reward::RewardHello;
use types::{Incarnation, Timestamp, Vocabulary};

use crate::small_run::{actor_hello, learner_hello, manifest, plan};

const NOW: Timestamp = Timestamp(1_000_000);

fn words(word: &str) -> Option<Vocabulary> {
    Some(Vocabulary::of((0..10).map(|id| (id, format!("{word}{id}"))).collect::<Vec<_>>()))
}

fn learner(vocabulary: Option<Vocabulary>) -> Event {
    let hello = LearnerHello { vocabulary, ..learner_hello(1, manifest(0, 0)) };
    Event::Learner(LearnerEvent::Joined(hello))
}

fn actor(name: &str, vocabulary: Option<Vocabulary>) -> Event {
    let member = name.parse().unwrap();
    let weights = Some((manifest(0, 0).version(), manifest(0, 0).hash()));
    let hello = ActorHello { weights, vocabulary, ..actor_hello(member) };
    Event::Actor { member: name.parse().unwrap(), event: ActorEvent::Joined(hello) }
}

fn server(name: &str, vocabulary: Option<Vocabulary>) -> Event {
    let hello = RewardHello {
        member: name.parse().unwrap(),
        incarnation: Incarnation(1),
        run: None,
        address: format!("{name}:1"),
        vocabulary,
    };
    Event::Reward { member: name.parse().unwrap(), event: RewardEvent::Joined(hello) }
}

/// Delivers events, and yields the effects of the last one.
fn after(state: &mut State, events: impl IntoIterator<Item = Event>) -> Vec<Effect> {
    let mut effects = Vec::new();
    for event in events {
        effects = state.apply(NOW, event).effects;
        effects.extend(state.settle(NOW).effects);
    }
    effects
}

/// Who is refused for the tokenizer, and why.
fn refused(effects: &[Effect]) -> Vec<(Role, String, String)> {
    let refused = effects.iter().filter_map(|effect| match effect {
        Effect::Refuse { role, member, refusal: Refusal { cause: RefusalCause::Tokenizer, reason } } => {
            Some((*role, member.to_string(), reason.clone()))
        }
        _ => None,
    });
    refused.collect()
}

fn unsaid(effects: &[Effect]) -> usize {
    let unsaid = |effect: &&Effect| matches!(effect, Effect::Notice(Notice::VocabularyUnsaid { .. }));
    effects.iter().filter(unsaid).count()
}

#[test]
fn another_tokenizer_than_the_learners_is_refused_and_changes_nothing() {
    let mut state = State::new(plan());
    after(&mut state, [learner(words("word")), server("right", words("word"))]);
    for event in [server("wrong", words("other")), actor("wrong", words("other"))] {
        let refusal = state.check_joining(NOW, &event).unwrap_err();
        assert_eq!(refusal.cause, RefusalCause::Tokenizer);
        assert!(refusal.reason.contains("which is that of learner learner at"), "{refusal}");
        let effects = after(&mut state, [event]);
        assert_eq!(refused(&effects).len(), 1, "{effects:?}");
    }
    assert_eq!(state.members().reward_servers().len(), 1, "the wrong one is no member");
    assert!(state.members().actors().is_empty());
}

#[test]
fn who_came_before_is_sent_away_when_the_learner_says_what_the_policy_reads() {
    let mut state = State::new(plan());
    let early = [
        server("one", words("word")),
        server("two", words("other")),
        actor("a", words("other")),
        actor("b", words("other")),
    ];
    let effects = after(&mut state, early);
    assert!(refused(&effects).is_empty());
    assert!(
        !state.members().reward_servers().get(&"one".parse().unwrap()).unwrap().connected,
        "actors said otherwise"
    );
    let effects = after(&mut state, [server("three", words("word"))]);
    assert_eq!(refused(&effects).len(), 1, "an actor's word counts before there is a learner");
    let effects = after(&mut state, [learner(words("word"))]);
    let who: Vec<_> = refused(&effects).into_iter().map(|(role, member, _)| (role, member)).collect();
    let wrong = [(Role::RewardServer, "two"), (Role::Actor, "a"), (Role::Actor, "b")];
    assert_eq!(who, wrong.map(|(role, member)| (role, member.to_owned())));
    assert!(state.members().actors().values().all(|actor| !actor.connected));
    let effects = after(&mut state, [server("three", words("word")), actor("c", words("word"))]);
    assert!(refused(&effects).is_empty(), "{effects:?}");
    let told = effects.iter().find_map(|effect| match effect {
        Effect::Actor { command, .. } => match command.as_ref() {
            ActorCommand::RewardServers(servers) => Some(servers.clone()),
            _ => None,
        },
        _ => None,
    });
    let told: Vec<_> = told.unwrap().into_iter().map(|server| server.address).collect();
    assert_eq!(told, ["three:1"], "who was sent away is no address any more");
}

#[test]
fn who_does_not_say_and_who_reads_no_text_are_let_in() {
    let mut state = State::new(plan());
    after(&mut state, [learner(words("word"))]);
    let mut warnings = 0;
    for event in [
        server("numbers", Some(Vocabulary::none())),
        server("older", None),
        server("another", None),
        actor("older", None),
        actor("another", None),
    ] {
        let effects = after(&mut state, [event]);
        assert!(refused(&effects).is_empty(), "{effects:?}");
        warnings += unsaid(&effects);
    }
    assert_eq!(warnings, 2, "one of each role");
    assert!(state.members().actors().values().all(|actor| actor.connected));
    // A learner that says nothing takes nothing back.
    let effects = after(&mut state, [learner(None), server("wrong", words("other"))]);
    assert_eq!(refused(&effects).len(), 1, "{effects:?}");
}

#[test]
fn an_actor_without_weights_has_no_tokenizer_yet() {
    let mut state = State::new(plan());
    let member: types::MemberId = "new".parse().unwrap();
    let joined = ActorEvent::Joined(actor_hello(member.clone()));
    let effects = after(&mut state, [learner(words("word")), Event::Actor { member, event: joined }]);
    assert_eq!(unsaid(&effects), 0, "{effects:?}");
}
