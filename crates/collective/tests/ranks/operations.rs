//! Every operation against values worked out here by loops, for 1 to 4 ranks, all kinds, and sizes around the
//! edges.

use collective::{Error, ProcessGroup, Reduce};
use tch::{Device, Kind, Tensor};

use crate::threads::{TIMEOUT, barrier, in_group};

crate::tests! {
    broadcast_copies_the_root,
    all_reduce_reduces,
    all_gather_collects_in_order_of_rank,
    reduce_scatter_leaves_each_rank_its_part,
    reduce_scatter_rounds_once,
    all_reduce_is_the_same_bit_for_bit,
    bytes_are_broadcast,
    operations_overlap,
    leaves_that_require_gradients_are_written,
    what_is_wrong_here_is_refused_and_the_group_goes_on,
}

const KINDS: [Kind; 8] =
    [Kind::Float, Kind::BFloat16, Kind::Half, Kind::Double, Kind::Int64, Kind::Int, Kind::Int8, Kind::Uint8];
const SHAPES: [&[i64]; 5] = [&[], &[1], &[0], &[7], &[3, 5, 67]];
const REDUCTIONS: [Reduce; 4] = [Reduce::Sum, Reduce::Mean, Reduce::Max, Reduce::Min];

fn is_float(kind: Kind) -> bool {
    matches!(kind, Kind::Float | Kind::BFloat16 | Kind::Half | Kind::Double)
}

/// What rank `rank` holds at position `i`: small enough for every kind to add up exactly, and so that the sum
/// over the ranks divides by their number.
fn value(rank: usize, i: usize) -> i64 {
    (i % 5 + 2 * rank) as i64
}

fn filled(rank: usize, shape: &[i64], kind: Kind) -> Tensor {
    let count = shape.iter().product::<i64>() as usize;
    let values: Vec<i64> = (0..count).map(|i| value(rank, i)).collect();
    Tensor::from_slice(&values).view(shape).to_kind(kind)
}

fn values(tensor: &Tensor) -> Vec<i64> {
    let exact = tensor.to_kind(Kind::Double).view([-1]);
    let values = Vec::<f64>::try_from(exact).expect("a vector of f64");
    values
        .into_iter()
        .map(|value| {
            assert_eq!(value.fract(), 0.0);
            value as i64
        })
        .collect()
}

fn reduced(reduce: Reduce, world_size: usize, i: usize) -> i64 {
    let all = (0..world_size).map(|rank| value(rank, i));
    match reduce {
        Reduce::Sum => all.sum(),
        Reduce::Mean => all.sum::<i64>() / world_size as i64,
        Reduce::Max => all.max().expect("at least one rank"),
        Reduce::Min => all.min().expect("at least one rank"),
    }
}

/// Runs `check` with every world, kind and shape.
fn everywhere(check: impl Fn(&ProcessGroup, Kind, &[i64]) + Sync) {
    for world_size in 1..=4 {
        in_group(world_size, TIMEOUT, |group| {
            for kind in KINDS {
                for shape in SHAPES {
                    check(group, kind, shape);
                }
            }
        });
    }
}

fn broadcast_copies_the_root() {
    everywhere(|group, kind, shape| {
        for root in 0..group.world_size() {
            let mut tensor = filled(group.rank(), shape, kind);
            group.broadcast(&mut tensor, root).expect("broadcast");
            assert_eq!(values(&tensor), values(&filled(root, shape, kind)), "{kind:?} {shape:?} from {root}");
            assert_eq!(tensor.size(), shape);
        }
    });
}

fn all_reduce_reduces() {
    everywhere(|group, kind, shape| {
        for reduce in REDUCTIONS {
            if reduce == Reduce::Mean && !is_float(kind) {
                continue;
            }
            let mut tensor = filled(group.rank(), shape, kind);
            group.all_reduce(&mut tensor, reduce).expect("all_reduce");
            let expected: Vec<i64> =
                (0..tensor.numel()).map(|i| reduced(reduce, group.world_size(), i)).collect();
            assert_eq!(values(&tensor), expected, "{reduce:?} of {kind:?} {shape:?}");
        }
    });
}

fn all_gather_collects_in_order_of_rank() {
    everywhere(|group, kind, shape| {
        let input = filled(group.rank(), shape, kind);
        let mut whole_shape = vec![group.world_size() as i64];
        whole_shape.extend(shape);
        let mut whole = Tensor::full(whole_shape, 99, (kind, Device::Cpu));
        group.all_gather_into(&mut whole, &input).expect("all_gather_into");
        for rank in 0..group.world_size() {
            let expected = values(&filled(rank, shape, kind));
            assert_eq!(values(&whole.get(rank as i64)), expected, "{kind:?} {shape:?}");
        }
    });
}

fn reduce_scatter_leaves_each_rank_its_part() {
    everywhere(|group, kind, shape| {
        for reduce in REDUCTIONS {
            if reduce == Reduce::Mean && !is_float(kind) {
                continue;
            }
            let mut input_shape = vec![group.world_size() as i64];
            input_shape.extend(shape);
            let input = filled(group.rank(), &input_shape, kind);
            let mut output = Tensor::full(shape, 99, (kind, Device::Cpu));
            group.reduce_scatter(&mut output, &input, reduce).expect("reduce_scatter");
            let start = group.rank() * output.numel();
            let expected: Vec<i64> =
                (start..start + output.numel()).map(|i| reduced(reduce, group.world_size(), i)).collect();
            assert_eq!(values(&output), expected, "{reduce:?} of {kind:?} {shape:?}");
            assert_eq!(values(&input), values(&filled(group.rank(), &input_shape, kind)), "the input stays");
        }
    });
}

/// 256 + 1 is 256 in bf16, and 2048 + 1 is 2048 in f16: rounding after each addition would lose both ones.
fn reduce_scatter_rounds_once() {
    in_group(3, TIMEOUT, |group| {
        for (kind, big) in [(Kind::BFloat16, 256), (Kind::Half, 2048)] {
            let own = if group.rank() == 0 { big } else { 1 };
            let input = Tensor::full([3], own, (kind, Device::Cpu));
            let mut output = Tensor::zeros([1], (kind, Device::Cpu));
            group.reduce_scatter(&mut output, &input, Reduce::Sum).expect("reduce_scatter");
            assert_eq!(values(&output), [big + 2], "{kind:?}");
        }
    });
}

fn all_reduce_is_the_same_bit_for_bit() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let results = in_group(3, TIMEOUT, |group| {
            // Values of all magnitudes, different on every rank, without a random number generator.
            let values: Vec<f64> = (1..=10_007)
                .map(|i| (f64::from(i) * (group.rank() + 2) as f64).sin() * f64::from(i % 97).exp2())
                .collect();
            let mut tensor = Tensor::from_slice(&values).to_kind(kind);
            group.all_reduce(&mut tensor, Reduce::Sum).expect("all_reduce");
            Vec::<f64>::try_from(tensor.to_kind(Kind::Double)).expect("values")
        });
        assert_eq!(results[0], results[1]);
        assert_eq!(results[0], results[2]);
    }
}

fn bytes_are_broadcast() {
    for world_size in 1..=3 {
        in_group(world_size, TIMEOUT, |group| {
            for root in 0..world_size {
                for length in [0, 1, 100_003] {
                    let message: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
                    let mut bytes = if group.rank() == root { message.clone() } else { vec![7; 12] };
                    group.broadcast_bytes(&mut bytes, root).expect("broadcast_bytes");
                    assert!(bytes == message, "{length} bytes from {root}");
                }
            }
        });
    }
}

/// Buckets in flight at once, waited for backwards, with other operations between them.
fn operations_overlap() {
    in_group(3, TIMEOUT, |group| {
        let mut buckets: Vec<_> = (0..8)
            .map(|i| Tensor::full([100_000], i + group.rank() as i64, (Kind::Float, Device::Cpu)))
            .collect();
        let works: Vec<_> = buckets
            .iter_mut()
            .map(|bucket| group.start_all_reduce(bucket, Reduce::Sum).expect("start"))
            .collect();
        let mut tensor = filled(group.rank(), &[10], Kind::Int64);
        group.all_reduce(&mut tensor, Reduce::Max).expect("between");
        assert_eq!(values(&tensor), (0..10).map(|i| reduced(Reduce::Max, 3, i)).collect::<Vec<_>>());
        for work in works.into_iter().rev() {
            work.wait(TIMEOUT).expect("a bucket");
        }
        for (i, bucket) in buckets.iter().enumerate() {
            assert_eq!(values(&bucket.narrow(0, 0, 1)), [3 * i as i64 + 3]);
        }
    });
}

fn leaves_that_require_gradients_are_written() {
    in_group(2, TIMEOUT, |group| {
        let leaf = |value: i64| Tensor::full([4], value, (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let own = group.rank() as i64 + 1;
        let mut tensor = leaf(own);
        group.broadcast(&mut tensor, 1).expect("broadcast");
        group.all_reduce(&mut tensor, Reduce::Mean).expect("all_reduce");
        let mut whole = Tensor::zeros([8], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        group.all_gather_into(&mut whole, &leaf(own)).expect("all_gather_into");
        let mut part = Tensor::zeros([4], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        group.reduce_scatter(&mut part, &whole, Reduce::Sum).expect("reduce_scatter");
        assert_eq!(values(&tensor.detach()), [2; 4]);
        assert_eq!(values(&whole.detach()), [1, 1, 1, 1, 2, 2, 2, 2]);
        assert_eq!(values(&part.detach()), [2 * own; 4]);
        assert!(tensor.requires_grad() && part.requires_grad());
    });
}

fn what_is_wrong_here_is_refused_and_the_group_goes_on() {
    in_group(2, TIMEOUT, |group| {
        let good = || Tensor::zeros([4], (Kind::Float, Device::Cpu));
        let refused = |result: collective::Result<()>, reason: &str| {
            let error = result.expect_err(reason);
            assert!(matches!(error, Error::Invalid { .. }), "{error:?}");
            assert!(error.to_string().contains(reason), "{error}");
        };
        refused(group.broadcast(&mut good(), 2), "the root is rank 2 in a world of 2");
        refused(group.broadcast_bytes(&mut vec![1], 2), "the root is rank 2 in a world of 2");
        refused(group.broadcast(&mut Tensor::new(), 0), "not defined");
        refused(
            group.broadcast(&mut Tensor::zeros([2, 3], (Kind::Float, Device::Cpu)).transpose(0, 1), 0),
            "not contiguous",
        );
        refused(group.all_reduce(&mut good().to_kind(Kind::Bool), Reduce::Sum), "of kind Bool");
        refused(group.all_reduce(&mut good().to_kind(Kind::Int64), Reduce::Mean), "Int64 has no mean");
        refused(group.all_gather_into(&mut good(), &good()), "does not hold 2 parts");
        refused(
            group.all_gather_into(&mut Tensor::zeros([8], (Kind::Half, Device::Cpu)), &good()),
            "output is Half, but input is Float",
        );
        refused(group.reduce_scatter(&mut good(), &good(), Reduce::Sum), "does not hold 2 parts");
        barrier(group).expect("the group goes on");
        assert_eq!(group.ended(), None);
    });
}
