//! How groups come, disagree and go, among ranks that all live.

use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use collective::{Backend, Error, GlooAddress, GroupConfig, PeerState, ProcessGroup, Reduce};
use tch::{Device, Kind, Tensor};

use crate::threads::{Meeting, TIMEOUT, barrier, config, in_group, join, on_threads, serve, start_barrier};

crate::tests! {
    two_groups_work_at_once,
    a_name_is_used_once,
    a_member_that_never_comes_is_named,
    who_comes_after_the_others_gave_up_is_told,
    gloo_listens_where_it_is_told,
    nccl_needs_the_feature,
    an_abort_ends_what_is_pending,
    an_abort_ends_the_group_elsewhere,
    different_operations_are_an_error_on_all_ranks,
    different_shapes_are_an_error_on_all_ranks,
    different_kinds_of_equal_size_never_mix,
    a_short_wait_ends_the_group,
    a_rank_that_lags_behind_is_named,
    leaving_early_spoils_nothing,
    leaving_with_operations_under_way_is_quick_and_known,
}

fn ones(size: i64) -> Tensor {
    Tensor::ones([size], (Kind::Float, Device::Cpu))
}

fn two_groups_work_at_once() {
    on_threads(3, |rank, store| {
        let old = join(&store, config("group-1", rank, 3)).expect("join the first");
        let mut in_old: Vec<_> = (0..4).map(|_| ones(10_000)).collect();
        let under_way: Vec<_> = in_old
            .iter_mut()
            .map(|tensor| old.start_all_reduce(tensor, Reduce::Sum).expect("start"))
            .collect();
        // The second has fewer members, and ranks of its own.
        if rank > 0 {
            let new = join(&store, config("group-2", 2 - rank, 2)).expect("join the second");
            let mut tensor = &ones(5) * (rank as i64);
            new.broadcast(&mut tensor, 0).expect("broadcast in the second");
            assert_eq!(tensor, &ones(5) * 2);
            assert_eq!((new.name(), new.rank(), new.world_size()), ("group-2", 2 - rank, 2));
        }
        for work in under_way {
            work.wait(TIMEOUT).expect("all_reduce in the first");
        }
        assert!(in_old.iter().all(|tensor| *tensor == &ones(10_000) * 3));
        barrier(&old).expect("the first outlives the second");
    });
}

fn a_name_is_used_once() {
    let store = serve();
    let group = join(&store, config("group", 0, 1)).expect("join");
    let again = join(&store, config("group", 0, 1)).expect_err("used");
    assert!(matches!(again, Error::Invalid { operation: "join", .. }), "{again:?}");
    drop(group);
    join(&store, config("group", 0, 1)).expect_err("used for good");
    join(&store, config("another", 0, 1)).expect("another name");
}

fn a_member_that_never_comes_is_named() {
    let errors = on_threads(2, |rank, store| {
        let start = Instant::now();
        let limit = Duration::from_millis(700);
        // Ranks 1 and 3 of 4 never come.
        let error = join(&store, GroupConfig { join_timeout: limit, ..config("group", 2 * rank, 4) })
            .expect_err("not all came");
        assert!(
            start.elapsed() >= limit && start.elapsed() < Duration::from_secs(3),
            "{:?}",
            start.elapsed()
        );
        error
    });
    for error in errors {
        assert_eq!(error.missing(), [1, 3]);
        assert!(error.to_string().contains("no sign of rank 1, 3"), "{error}");
    }
}

fn who_comes_after_the_others_gave_up_is_told() {
    on_threads(2, |rank, store| {
        let early = GroupConfig { join_timeout: Duration::from_millis(300), ..config("group", 0, 2) };
        if rank == 0 {
            join(&store, early).expect_err("alone");
            store.set("gave-up", b"").expect("set");
            return;
        }
        store.wait(&["gave-up"], TIMEOUT).expect("the other gives up");
        let start = Instant::now();
        let error = join(&store, config("group", 1, 2)).expect_err("too late");
        assert!(error.to_string().contains("rank 0 had given up waiting"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    });
}

fn gloo_listens_where_it_is_told() {
    on_threads(2, |rank, store| {
        let at = [GlooAddress::Host("127.0.0.1".into()), GlooAddress::Interface("lo".into())];
        for (number, address) in at.into_iter().enumerate() {
            let name = format!("group-{number}");
            let group =
                join(&store, GroupConfig { backend: Backend::Gloo(address), ..config(&name, rank, 2) });
            barrier(&group.expect("join")).expect("barrier");
        }
        let nowhere = Backend::Gloo(GlooAddress::Host("192.0.2.1".into()));
        let short = Duration::from_secs(2);
        let config = GroupConfig { backend: nowhere, join_timeout: short, ..config("nowhere", rank, 2) };
        let error = join(&store, config).expect_err("that address belongs to nobody");
        assert!(
            error.to_string().contains("cannot connect") && error.to_string().contains("192.0.2.1"),
            "{error}"
        );
    });
}

fn nccl_needs_the_feature() {
    if cfg!(feature = "cuda") && tch::Cuda::is_available() {
        return;
    }
    let store = serve();
    let nccl = GroupConfig { backend: Backend::Nccl { device: 0 }, ..config("group", 0, 1) };
    let error = join(&store, nccl).expect_err("no NCCL, or no GPU");
    assert!(matches!(error, Error::Join { .. }), "{error:?}");
}

fn an_abort_ends_what_is_pending() {
    let started = Meeting::of(2);
    in_group(2, TIMEOUT, |group| {
        if group.rank() == 1 {
            started.meet();
            // Never takes part, but lives until the other is through.
            started.meet();
            return;
        }
        let handle = group.abort_handle();
        let mut tensor = ones(4);
        let work = group.start_all_reduce(&mut tensor, Reduce::Sum).expect("start");
        let second = start_barrier(group).expect("start");
        started.meet();
        let aborter = thread::spawn(move || handle.abort("the run is over"));
        let start = Instant::now();
        let error = work.wait(TIMEOUT).expect_err("aborted");
        assert!(matches!(error, Error::Aborted(_)), "{error:?}");
        assert!(error.to_string().contains("all_reduce sum Float [4] #1"), "{error}");
        assert!(error.to_string().contains("aborted: the run is over"), "{error}");
        assert!(matches!(second.wait(TIMEOUT), Err(Error::Aborted(_))));
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        aborter.join().expect("abort returns");
        let dead = barrier(group).expect_err("the group has ended");
        assert!(matches!(&dead, Error::Dead { cause, .. } if cause.contains("the run is over")), "{dead:?}");
        started.meet();
    });
}

fn an_abort_ends_the_group_elsewhere() {
    let start = Instant::now();
    let errors = in_group(3, TIMEOUT, |group| match group.rank() {
        0 => {
            group.abort_handle().abort("enough");
            group.abort_handle().abort("twice is once");
            None
        }
        // In an operation when it happens.
        1 => Some(barrier(group).expect_err("rank 0 never comes")),
        // Between operations.
        _ => {
            while group.ended().is_none() {
                assert!(start.elapsed() < TIMEOUT, "the watcher never woke");
                thread::yield_now();
            }
            Some(barrier(group).expect_err("the group has ended"))
        }
    });
    for error in errors.into_iter().flatten() {
        assert!(error.to_string().contains("enough"), "{error}");
    }
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

/// Runs two ranks that disagree, and checks that both say how, long before the deadline.
fn disagreement(
    rank_0: impl Fn(&ProcessGroup) -> collective::Result<()> + Sync,
    rank_1: impl Fn(&ProcessGroup) -> collective::Result<()> + Sync,
) -> Vec<Error> {
    let start = Instant::now();
    let errors = in_group(2, TIMEOUT, |group| {
        barrier(group).expect("they still agree");
        let outcome = if group.rank() == 0 { rank_0(group) } else { rank_1(group) };
        outcome.expect_err("they disagree")
    });
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    for (rank, error) in errors.iter().enumerate() {
        let fault = error.fault().expect("an operation failed");
        assert_eq!((fault.rank, fault.sequence), (rank, 2));
        assert!(matches!(&fault.peers[..], [peer] if matches!(peer.state, PeerState::Differs(_))), "{error}");
    }
    errors
}

fn different_operations_are_an_error_on_all_ranks() {
    let errors = disagreement(
        |group| group.broadcast(&mut ones(8), 0).and_then(|()| barrier(group)),
        |group| group.all_reduce(&mut ones(8), Reduce::Sum),
    );
    assert!(errors[0].to_string().contains("rank 1 launched all_reduce sum Float [8] #2"), "{}", errors[0]);
    assert!(errors[1].to_string().contains("rank 0 launched broadcast 0 Float [8] #2"), "{}", errors[1]);
}

fn different_shapes_are_an_error_on_all_ranks() {
    for size in [7, 9, 100_000] {
        disagreement(
            |group| group.all_reduce(&mut ones(8), Reduce::Sum).and_then(|()| barrier(group)),
            |group| group.all_reduce(&mut ones(size), Reduce::Sum).and_then(|()| barrier(group)),
        );
    }
}

fn different_kinds_of_equal_size_never_mix() {
    disagreement(
        |group| group.broadcast(&mut ones(8), 0).and_then(|()| barrier(group)),
        |group| {
            let mut tensor = Tensor::full([8], 5, (Kind::Int, Device::Cpu));
            let outcome = group.broadcast(&mut tensor, 0);
            assert_eq!(tensor, Tensor::full([8], 5, (Kind::Int, Device::Cpu)), "nothing was written");
            outcome
        },
    );
}

fn a_short_wait_ends_the_group() {
    let started = Meeting::of(2);
    in_group(2, TIMEOUT, |group| {
        if group.rank() == 1 {
            started.meet();
            return;
        }
        let start = Instant::now();
        let work = start_barrier(group).expect("start");
        assert!(!work.is_done());
        let error = work.wait(Duration::from_millis(100)).expect_err("rank 1 never comes");
        assert!(matches!(error, Error::Timeout(_)), "{error:?}");
        assert_eq!(error.missing(), [1]);
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        assert!(matches!(barrier(group), Err(Error::Dead { .. })));
        started.meet();
    });
}

fn a_rank_that_lags_behind_is_named() {
    let limit = Duration::from_secs(1);
    let over = Meeting::of(3);
    in_group(3, limit, |group| {
        barrier(group).expect("all are there");
        let start = Instant::now();
        if group.rank() != 2 {
            let error = group.all_reduce(&mut ones(3), Reduce::Sum).expect_err("rank 2 never comes");
            let waited = start.elapsed();
            // The other's deadline may strike a little earlier and end the group here too.
            let early = Duration::from_millis(500);
            assert!(waited + early >= limit && waited < 2 * limit, "{waited:?}");
            assert_eq!(error.missing(), [2], "{error}");
            assert!(
                error
                    .to_string()
                    .contains("rank 2 never arrived (its last operation was all_reduce sum Float [1] #1)"),
                "{error}"
            );
        }
        over.meet();
    });
}

/// The root of a broadcast may be through, and gone, before the others have read what it sent.
fn leaving_early_spoils_nothing() {
    on_threads(3, |rank, store| {
        for number in 0..20 {
            let group = join(&store, config(&format!("group-{number}"), rank, 3)).expect("join");
            let mut tensor = &ones(1 << 20) * (rank as i64 + 1);
            group.broadcast(&mut tensor, 0).expect("broadcast");
            drop(group);
            assert_eq!(tensor, ones(1 << 20));
        }
    });
}

fn leaving_with_operations_under_way_is_quick_and_known() {
    let (dropped, other) = (channel(), Meeting::of(2));
    let receiver = std::sync::Mutex::new(dropped.1);
    on_threads(2, |rank, store| {
        let group = join(&store, config("group", rank, 2)).expect("join");
        if rank == 0 {
            let mut tensor = ones(1 << 16);
            let work = group.start_all_reduce(&mut tensor, Reduce::Sum).expect("start");
            let unwaited = start_barrier(&group).expect("start");
            drop(unwaited);
            let start = Instant::now();
            drop(group);
            assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
            let error = work.wait(TIMEOUT).expect_err("its group is gone");
            assert!(matches!(error, Error::Lost(_)), "{error:?}");
            dropped.0.send(()).expect("rank 1 listens");
            other.meet();
            return;
        }
        receiver.lock().expect("not poisoned").recv_timeout(TIMEOUT).expect("rank 0 leaves");
        let error = barrier(&group).expect_err("rank 0 has left");
        assert!(matches!(&error, Error::Lost(fault) if fault.peers[0].state == PeerState::Left), "{error:?}");
        assert_eq!(error.missing(), [0]);
        other.meet();
    });
}

/// What needs a GPU; the nextest profile `gpu` runs it.
#[cfg(feature = "cuda")]
pub(crate) mod gpu {
    use super::*;

    crate::tests![nccl_of_one_rank];

    /// The operations through NCCL as far as one rank goes.
    fn nccl_of_one_rank() {
        let store = serve();
        let nccl = GroupConfig { backend: Backend::Nccl { device: 0 }, ..config("group", 0, 1) };
        let group = join(&store, nccl).expect("join");
        let on_gpu = |value: i64| Tensor::full([6], value, (Kind::Float, Device::Cuda(0)));
        let mut tensor = on_gpu(3);
        group.broadcast(&mut tensor, 0).expect("broadcast");
        group.all_reduce(&mut tensor, Reduce::Mean).expect("all_reduce");
        let mut whole = on_gpu(0);
        group.all_gather_into(&mut whole, &tensor).expect("all_gather_into");
        let mut part = on_gpu(0);
        group.reduce_scatter(&mut part, &whole, Reduce::Sum).expect("reduce_scatter");
        let mut bytes = vec![1, 2, 3];
        group.broadcast_bytes(&mut bytes, 0).expect("broadcast_bytes");
        assert_eq!(part, on_gpu(3));
        group.broadcast(&mut ones(1), 0).expect_err("a tensor on the CPU");
    }
}
