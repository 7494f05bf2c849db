//! FlashAttention through the bridge. With the feature `cuda`; the module `gpu` needs a GPU (`nextest`
//! profile `gpu`).

#![cfg(feature = "cuda")]

use model::cuda::flash::{self, Ragged};
use tch::{Device, Kind, Tensor};

/// The operator has no CPU kernel: its exception comes back as an error, through the C++ bridge.
#[test]
fn an_exception_of_the_operator_is_an_error() {
    let tensor = Tensor::zeros([4, 2, 8], (Kind::BFloat16, Device::Cpu));
    assert!(!flash::applies(&tensor));
    let ragged = Ragged::new(&[1, 3], Device::Cpu);
    let used = Tensor::from_slice(&[1i32, 2]);
    for keys in [Ragged::new(&[1, 3], Device::Cpu), Ragged::new(&[1, 3], Device::Cpu).with_used(used)] {
        let error = flash::attention((&tensor, &ragged), (&tensor, &tensor, &keys), Some(2)).unwrap_err();
        assert!(error.to_string().contains("_flash_attention_forward"), "{error}");
    }
}

mod gpu {
    use model::Packed;

    use super::*;

    fn difference(found: &Tensor, expected: &Tensor) -> f64 {
        let cpu = |tensor: &Tensor| tensor.to_device(Device::Cpu).to_kind(Kind::Float);
        (cpu(found) - cpu(expected)).abs().max().double_value(&[])
    }

    #[test]
    fn packed_attention_is_that_of_the_cpu() {
        tch::manual_seed(1);
        let lengths = [3, 1, 600, 40];
        let tokens: Vec<Vec<u32>> = lengths.iter().map(|length| vec![0; *length]).collect();
        let here = Packed::new(&tokens, 1, Device::Cpu).unwrap();
        let there = Packed::new(&tokens, 1, Device::Cuda(0)).unwrap();
        for window in [None, Some(1), Some(7), Some(300)] {
            let make =
                |heads| Tensor::randn([644, heads, 64], (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16);
            let inputs = [make(4), make(2), make(2)];
            let run = |packed: &Packed, device: Device, kind: Kind| {
                let inputs =
                    inputs.each_ref().map(|x| x.to_device(device).to_kind(kind).set_requires_grad(true));
                let [q, k, v] = &inputs;
                let attended = model::packed_attention(q, k, v, packed, window);
                let gradients = Tensor::run_backward(&[attended.square().sum(None)], &inputs, false, false);
                (attended, gradients)
            };
            let (expected, expected_gradients) = run(&here, Device::Cpu, Kind::Float);
            let (found, gradients) = run(&there, Device::Cuda(0), Kind::BFloat16);
            assert!(difference(&found, &expected) < 2e-2, "{window:?}");
            for (found, expected) in gradients.iter().zip(&expected_gradients) {
                assert!(difference(found, expected) < 2e-1, "{window:?}");
            }
        }
    }

    /// One query at the end of each cached sequence gives the last row of the whole sequence's attention.
    #[test]
    fn queries_stand_at_the_end_of_their_keys() {
        tch::manual_seed(2);
        let device = Device::Cuda(0);
        let lengths = [5, 130];
        let make = |heads| Tensor::randn([135, heads, 64], (Kind::BFloat16, device));
        let (q, k, v) = (make(4), make(2), make(2));
        let of_keys = Ragged::new(&lengths, device);
        let whole = flash::attention((&q, &of_keys), (&k, &v, &of_keys), Some(9)).unwrap();
        let last = Tensor::from_slice(&[4i64, 134]).to_device(device);
        let of_queries = Ragged::new(&[1, 1], device);
        let queries = q.index_select(0, &last);
        let found = flash::attention((&queries, &of_queries), (&k, &v, &of_keys), Some(9)).unwrap();
        assert!(difference(&found, &whole.index_select(0, &last)) < 1e-2);
    }

    /// Keys that do not count change nothing, not even when they are not numbers.
    #[test]
    fn keys_beyond_the_used_ones_are_not_read() {
        tch::manual_seed(3);
        let device = Device::Cuda(0);
        let make = |rows, heads| Tensor::randn([rows, heads, 64], (Kind::BFloat16, device));
        let (q, k, v) = (make(3, 4), make(35, 2), make(35, 2));
        let of_queries = Ragged::new(&[1, 2], device);
        let exact =
            flash::attention((&q, &of_queries), (&k, &v, &Ragged::new(&[5, 30], device)), None).unwrap();
        let spread = |rows: &Tensor| {
            let wide = Tensor::full([48, 2, 64], f64::NAN, (Kind::BFloat16, device));
            wide.narrow(0, 0, 5).copy_(&rows.narrow(0, 0, 5));
            wide.narrow(0, 16, 30).copy_(&rows.narrow(0, 5, 30));
            wide
        };
        let of_keys =
            Ragged::new(&[16, 32], device).with_used(Tensor::from_slice(&[5i32, 30]).to_device(device));
        let found = flash::attention((&q, &of_queries), (&spread(&k), &spread(&v), &of_keys), None).unwrap();
        assert!(difference(&found, &exact) < 1e-2);
    }
}
