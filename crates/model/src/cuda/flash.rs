//! FlashAttention over ragged sequences on CUDA (Dao, arXiv 2307.08691), through ATen's own operator.

use std::ffi::{c_char, c_void};

use tch::{Device, Kind, TchError, Tensor};

/// A row dimension cut into sequences that lie end to end.
#[derive(Debug)]
pub struct Ragged {
    /// Where each sequence begins, and the end of the last: `[sequences + 1]` i32, on the device.
    offsets: Tensor,
    /// Rows of each sequence that count, from its beginning on, `[sequences]` i32; all where absent.
    used: Option<Tensor>,
    /// Rows of the longest.
    longest: i64,
}

impl Ragged {
    /// Sequences of `lengths` rows.
    pub fn new(lengths: &[i64], device: Device) -> Self {
        let mut offsets = vec![0];
        let mut end = 0;
        for length in lengths {
            end += length;
            offsets.push(end);
        }
        let offsets = Tensor::from_slice(&offsets).to_kind(Kind::Int).to_device(device);
        Self::from_offsets(offsets, lengths.iter().copied().max().unwrap_or(0))
    }

    /// Sequences that begin at `offsets`, `[sequences + 1]` i32 on the device, the end of the last included.
    /// The longest has at most `longest` rows that count.
    pub fn from_offsets(offsets: Tensor, longest: i64) -> Self {
        Self { offsets, used: None, longest }
    }

    /// Lets only the first rows of each sequence count: `used`, `[sequences]` i32 on the device. For keys
    /// only.
    #[must_use]
    pub fn with_used(self, used: Tensor) -> Self {
        Self { used: Some(used), ..self }
    }
}

#[repr(C)]
struct RawRagged {
    offsets: *const c_void,
    used: *const c_void,
    longest: i64,
}

impl From<&Ragged> for RawRagged {
    fn from(ragged: &Ragged) -> Self {
        let used = ragged.used.as_ref().map_or(std::ptr::null(), |used| used.as_ptr().cast());
        Self { offsets: ragged.offsets.as_ptr().cast(), used, longest: ragged.longest }
    }
}

unsafe extern "C" {
    fn sluice_flash_attention(
        queries: *const c_void,
        keys: *const c_void,
        values: *const c_void,
        of_queries: *const RawRagged,
        of_keys: *const RawRagged,
        left: i64,
        attended: *mut *mut c_void,
    ) -> *mut c_char;
}

/// Whether the kernel takes such queries: see [`takes`].
pub fn applies(queries: &Tensor) -> bool {
    takes(queries.kind(), queries.device(), queries.size().last().copied().unwrap_or(0))
}

/// Whether the kernel takes heads of `head_dim` elements: half precision on CUDA, at most 256 elements, a
/// multiple of 8.
pub fn takes(kind: Kind, device: Device, head_dim: i64) -> bool {
    let half = matches!(kind, Kind::BFloat16 | Kind::Half);
    half && device.is_cuda() && head_dim <= 256 && head_dim % 8 == 0
}

/// Causal attention of ragged sequences: `queries` `[rows, heads, head_dim]` against `keys` and `values`
/// `[columns, kv_heads, head_dim]`, as many sequences of each. The last query of a sequence stands at its
/// last key, so a sequence may have fewer queries than keys (a cache). With a `window` a query sees that many
/// keys, its own included.
///
/// # Errors
/// The operator's message when it refuses: shapes, types or devices that [`applies`] excludes, or no memory.
pub fn attention(
    (queries, of_queries): (&Tensor, &Ragged),
    (keys, values, of_keys): (&Tensor, &Tensor, &Ragged),
    window: Option<i64>,
) -> Result<Tensor, TchError> {
    let mut attended = std::ptr::null_mut();
    // SAFETY: the pointers are to live ATen tensors, borrowed for the call; the C++ side reads them, catches
    // its exceptions, and on success stores one newly allocated tensor, whose ownership `from_ptr` takes. A
    // message is a NUL-terminated string from `strdup`.
    unsafe {
        super::outcome(sluice_flash_attention(
            queries.as_ptr().cast(),
            keys.as_ptr().cast(),
            values.as_ptr().cast(),
            &of_queries.into(),
            &of_keys.into(),
            window.map_or(-1, |window| window - 1),
            &raw mut attended,
        ))?;
        Ok(Tensor::from_ptr(attended.cast()))
    }
}
