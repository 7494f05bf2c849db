//! Members that die, stop and come back, as processes.

use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use collective::{AbortHandle, Error, GroupConfig, PeerState, ProcessGroup, Reduce, Store};
use nix::sys::signal::Signal;
use tch::{Device, Kind, Tensor};

use crate::processes::{BROADCAST, Member, Scenario};
use crate::threads::{TIMEOUT, config, join, serve};

crate::tests! {
    a_member_killed_in_a_broadcast_is_named_and_the_next_group_works,
    a_member_killed_half_way_through_receiving_is_named,
    a_member_killed_half_way_through_sending_is_named,
    an_abort_half_way_through_a_transfer_is_quick,
    a_member_stopped_in_an_all_reduce_is_named_after_the_deadline,
    a_death_ends_the_group_on_a_member_that_is_idle,
    a_death_is_noticed_in_an_operation_that_waits_for_another,
    the_death_of_the_host_of_the_store_is_named,
    a_stopped_host_of_the_store_holds_nobody_up,
    a_stopped_store_holds_no_call_up,
    groups_leave_nothing_behind,
}

/// Repeats `operation` until it fails; returns the error, and when its last round began.
fn until_failure(operation: impl Fn() -> collective::Result<()>) -> (Error, Instant) {
    let start = Instant::now();
    loop {
        let round = Instant::now();
        if let Err(error) = operation() {
            return (error, round);
        }
        assert!(start.elapsed() < 2 * TIMEOUT, "nothing fails");
    }
}

fn broadcast(group: &ProcessGroup) -> collective::Result<()> {
    group.broadcast(&mut Tensor::ones([BROADCAST], (Kind::Float, Device::Cpu)), 0)
}

fn all_reduce(group: &ProcessGroup) -> collective::Result<()> {
    group.all_reduce(&mut Tensor::ones([1024], (Kind::Float, Device::Cpu)), Reduce::Sum)
}

fn a_member_killed_in_a_broadcast_is_named_and_the_next_group_works() {
    let store = serve();
    let members =
        [1, 2].map(|rank| Member::start(Scenario::Broadcasts, store.port(), &config("group-1", rank, 3)));
    let group = join(&store, config("group-1", 0, 3)).expect("join");
    let killed = thread::scope(|scope| {
        let killer = scope.spawn(|| {
            members.iter().for_each(|member| drop(member.line("running")));
            members[1].signal(Signal::SIGKILL);
            Instant::now()
        });
        let (error, _) = until_failure(|| broadcast(&group));
        let noticed = Instant::now();
        assert!(matches!(error, Error::Lost(_)), "{error:?}");
        assert_eq!(error.missing(), [2], "{error}");
        assert!(error.to_string().contains("rank 2 does not answer"), "{error}");
        assert!(error.to_string().starts_with("broadcast 0 Float [8388608] #"), "{error}");
        noticed - killer.join().expect("the killer")
    });
    assert!(killed < Duration::from_millis(1500), "named after {killed:?}");
    assert_eq!(members[0].line("missing"), "[2]");

    let dead = broadcast(&group).expect_err("the group is over");
    assert!(matches!(dead, Error::Dead { .. }), "{dead:?}");
    let start = Instant::now();
    drop(group);
    assert!(start.elapsed() < Duration::from_secs(1), "dropping took {:?}", start.elapsed());

    let next = config("group-2", 1, 2);
    let member = Member::start(Scenario::Broadcasts, store.port(), &next);
    let group = join(&store, GroupConfig { rank: 0, ..next }).expect("join the next");
    for _ in 0..5 {
        broadcast(&group).expect("the next group works");
    }
    member.line("running");
}

/// Runs broadcasts between this process as rank `own` and a member as the other, stops the member, and lets
/// `then` do something about it when a broadcast is stuck in the middle. Returns how the broadcast ended, and
/// how long after.
fn stuck_in_a_broadcast(own: usize, then: impl Fn(&Member, &AbortHandle) + Send + Sync) -> (Error, Duration) {
    let store = serve();
    let member = Member::start(Scenario::Broadcasts, store.port(), &config("group", 1 - own, 2));
    let group = join(&store, config("group", own, 2)).expect("join");
    let abort = group.abort_handle();
    let round = Mutex::new(Instant::now());
    thread::scope(|scope| {
        let actor = scope.spawn(|| {
            member.line("running");
            member.signal(Signal::SIGSTOP);
            // Socket buffers are far smaller than a broadcast, so one that goes on for so long is in the
            // middle of it.
            while round.lock().expect("not poisoned").elapsed() < Duration::from_millis(400) {
                thread::yield_now();
            }
            let start = Instant::now();
            then(&member, &abort);
            start
        });
        let (error, _) = until_failure(|| {
            *round.lock().expect("not poisoned") = Instant::now();
            broadcast(&group)
        });
        let ended = Instant::now();
        let after = ended - actor.join().expect("the actor");
        drop(group);
        assert!(ended.elapsed() < Duration::from_secs(1), "dropping took {:?}", ended.elapsed());
        (error, after)
    })
}

fn a_member_killed_half_way_through_receiving_is_named() {
    let (error, after) = stuck_in_a_broadcast(0, |member, _| member.signal(Signal::SIGKILL));
    assert!(matches!(error, Error::Lost(_)), "{error:?}");
    assert_eq!(error.missing(), [1], "{error}");
    assert!(after < Duration::from_secs(2), "{after:?}");
}

fn a_member_killed_half_way_through_sending_is_named() {
    let (error, after) = stuck_in_a_broadcast(1, |member, _| member.signal(Signal::SIGKILL));
    assert!(matches!(error, Error::Lost(_)), "{error:?}");
    assert_eq!(error.missing(), [0], "{error}");
    assert!(after < Duration::from_secs(2), "{after:?}");
}

fn an_abort_half_way_through_a_transfer_is_quick() {
    for own in [0, 1] {
        let (error, after) = stuck_in_a_broadcast(own, |_, abort| abort.abort("enough"));
        assert!(matches!(error, Error::Aborted(_)), "{error:?}");
        assert!(after < Duration::from_millis(500), "{after:?}");
    }
}

fn a_member_stopped_in_an_all_reduce_is_named_after_the_deadline() {
    let store = serve();
    let limit = Duration::from_secs(2);
    let at = |rank| GroupConfig { timeout: limit, ..config("group", rank, 3) };
    let mut members = [1, 2].map(|rank| Member::start(Scenario::AllReduces, store.port(), &at(rank)));
    let group = join(&store, at(0)).expect("join");
    thread::scope(|scope| {
        scope.spawn(|| {
            members.iter().for_each(|member| drop(member.line("running")));
            members[1].signal(Signal::SIGSTOP);
        });
        let (error, round) = until_failure(|| all_reduce(&group));
        let waited = round.elapsed();
        // The deadline of rank 1 may strike a little earlier and end the group here too.
        let early = Duration::from_millis(200);
        assert!(waited + early >= limit && waited < limit + Duration::from_millis(1500), "{waited:?}");
        assert!(matches!(error, Error::Timeout(_) | Error::Lost(_)), "{error:?}");
        assert_eq!(error.missing(), [2], "{error}");
    });
    assert_eq!(members[0].line("missing"), "[2]");
    // When it goes on, it finds its group ended and does not hang.
    members[1].signal(Signal::SIGCONT);
    members[1].line("error");
    let dropping: u64 = members[1].line("dropped").parse().expect("milliseconds");
    assert!(dropping < 3000, "dropping took {dropping} ms");
    members.iter_mut().for_each(Member::ends);
}

fn a_death_ends_the_group_on_a_member_that_is_idle() {
    let store = serve();
    let idle = Member::start(Scenario::Idle, store.port(), &config("group", 1, 3));
    let killed = Member::start(Scenario::Idle, store.port(), &config("group", 2, 3));
    let group = join(&store, config("group", 0, 3)).expect("join");
    idle.line("joined");
    killed.line("joined");
    killed.signal(Signal::SIGKILL);
    let start = Instant::now();
    let error = broadcast(&group).expect_err("rank 2 is dead");
    let states: Vec<_> =
        error.fault().expect("a fault").peers.iter().map(|peer| peer.state.clone()).collect();
    assert_eq!(states, [PeerState::Behind(None), PeerState::Silent], "{error}");
    let told = idle.line("error");
    assert!(told.contains("the group has ended: broadcast 0 Float [8388608] #1 failed on rank 0"), "{told}");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

/// An all-reduce goes round a ring, so that rank 0 waits for rank 1 first, which does not come but lives.
fn a_death_is_noticed_in_an_operation_that_waits_for_another() {
    let store = serve();
    let _idle = Member::start(Scenario::Idle, store.port(), &config("group", 1, 3));
    let killed = Member::start(Scenario::Idle, store.port(), &config("group", 2, 3));
    let group = join(&store, config("group", 0, 3)).expect("join");
    killed.line("joined");
    let mut tensor = Tensor::ones([1024], (Kind::Float, Device::Cpu));
    let work = group.start_all_reduce(&mut tensor, Reduce::Sum).expect("start");
    killed.signal(Signal::SIGKILL);
    let start = Instant::now();
    let error = work.wait(TIMEOUT).expect_err("rank 2 is dead");
    assert!(matches!(error, Error::Lost(_)), "{error:?}");
    assert_eq!(error.missing(), [2], "{error}");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

/// Starts a member that hosts the store as rank 0 of 2, and joins it.
fn with_host(limit: Duration) -> (Member, Store, ProcessGroup) {
    let at = |rank| GroupConfig { timeout: limit, ..config("group", rank, 2) };
    let host = Member::start(Scenario::Hosts, 0, &at(0));
    let port = host.line("port").parse().expect("a port");
    let store = Store::connect("127.0.0.1", port, limit).expect("connect");
    let group = join(&store, at(1)).expect("join");
    (host, store, group)
}

fn the_death_of_the_host_of_the_store_is_named() {
    let (host, store, group) = with_host(TIMEOUT);
    thread::scope(|scope| {
        let killer = scope.spawn(|| {
            host.line("running");
            host.signal(Signal::SIGKILL);
            Instant::now()
        });
        let (error, _) = until_failure(|| all_reduce(&group));
        let noticed = Instant::now();
        assert!(matches!(error, Error::Lost(_)), "{error:?}");
        assert_eq!(error.missing(), [0], "{error}");
        let after = noticed - killer.join().expect("the killer");
        assert!(after < Duration::from_millis(1500), "named after {after:?}");
    });
    assert!(store.get("anything", TIMEOUT).is_err());
    let start = Instant::now();
    drop(group);
    assert!(start.elapsed() < Duration::from_secs(3), "dropping took {:?}", start.elapsed());
}

fn a_stopped_host_of_the_store_holds_nobody_up() {
    let limit = Duration::from_secs(1);
    let (host, _store, group) = with_host(limit);
    thread::scope(|scope| {
        scope.spawn(|| {
            host.line("running");
            host.signal(Signal::SIGSTOP);
        });
        let (error, round) = until_failure(|| all_reduce(&group));
        let waited = round.elapsed();
        assert!(matches!(error, Error::Timeout(_)), "{error:?}");
        assert_eq!(error.missing(), [0], "{error}");
        assert!(waited >= limit && waited < limit + Duration::from_millis(2500), "{waited:?}");
    });
    let start = Instant::now();
    drop(group);
    assert!(start.elapsed() < Duration::from_secs(4), "dropping took {:?}", start.elapsed());
}

fn a_stopped_store_holds_no_call_up() {
    let limit = Duration::from_secs(1);
    let (host, store, group) = with_host(limit);
    host.signal(Signal::SIGSTOP);
    let start = Instant::now();
    let error = store.get("anything", limit).expect_err("the server is stopped");
    assert!(error.to_string().contains("the server did not answer"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    let again = Instant::now();
    let error = store.add("anything", 1).expect_err("the connection was given up");
    assert!(error.to_string().contains("did not answer an earlier call"), "{error}");
    assert!(again.elapsed() < Duration::from_millis(100), "{:?}", again.elapsed());
    let error = Store::connect(store.host(), store.port(), limit).expect_err("the server is stopped");
    assert!(
        error.to_string().contains("no store answered") || error.to_string().contains("connect"),
        "{error}"
    );
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
    drop(group);
}

fn groups_leave_nothing_behind() {
    let member = Member::start(Scenario::Groups, 0, &config("unused", 0, 1));
    let after_10 = member.line("files");
    let after_60 = member.line("files");
    assert_eq!(after_10, after_60);
}
