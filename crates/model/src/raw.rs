//! The memory behind tensors and files: the only unsafe code of the network and of folders.
//!
//! What it relies on: nobody truncates or rewrites a file while it is mapped (Sluice replaces files by
//! rename, which leaves a mapped one whole), and nobody writes a tensor on another thread while its bytes are
//! read here.

use std::borrow::Cow;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::slice;

use memmap2::{Mmap, UncheckedAdvice};
use tch::{Device, Kind, Tensor};

/// Why bytes cannot become a tensor's values.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// Another number of bytes than the tensor has.
    #[error("{found} bytes for a tensor of {expected} bytes")]
    Length {
        /// How many bytes were given.
        found: usize,
        /// Bytes the tensor has.
        expected: usize,
    },
    /// An allocation or copy that torch refused.
    #[error("torch: {0}")]
    Torch(String),
}

/// A whole file, mapped for reading.
#[derive(Debug)]
pub(crate) struct MappedFile(Mmap);

impl MappedFile {
    /// Maps the file at `path`.
    pub(crate) fn open(path: &Path) -> std::io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the mapping is read-only and private to this value; that nobody shrinks the file meanwhile
        // is the condition at the head of this module.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Self(map))
    }

    /// The file's bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Lets the pages of `range` go: they no longer count as this process's memory, and are read again if
    /// needed.
    pub(crate) fn release(&self, range: Range<usize>) {
        // SAFETY: the pages are clean pages of a read-only file mapping; a later access reads the file again.
        let released =
            unsafe { self.0.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) };
        // Advice that is refused costs memory, never correctness.
        drop(released);
    }
}

/// Copies little-endian row-major `bytes` of element type `kind` into `target`, converting element type and
/// device.
///
/// # Errors
/// When the number of bytes is not that of `target`'s elements in `kind`.
pub fn copy_bytes(target: &mut Tensor, bytes: &[u8], kind: Kind) -> Result<(), Error> {
    let width = kind.elt_size_in_bytes();
    let expected = target.numel() * width;
    if bytes.len() != expected {
        return Err(Error::Length { found: bytes.len(), expected });
    }
    let aligned = bytes.as_ptr().addr().is_multiple_of(width);
    let bytes = if aligned { Cow::Borrowed(bytes) } else { Cow::Owned(bytes.to_vec()) };
    let shape = target.size();
    let strides = row_major(&shape);
    // SAFETY: the view reads `numel * width` bytes, which is the length checked above, of the element type
    // that `width` belongs to, at an address aligned for it (a `Vec`'s allocation is aligned to 16 bytes by
    // the allocator). It is dropped before `bytes`, and only read.
    let view = unsafe { Tensor::f_from_blob(bytes.as_ptr(), &shape, &strides, kind, Device::Cpu) };
    let _guard = tch::no_grad_guard();
    let copied = view.and_then(|view| target.f_copy_(&view));
    copied.map_err(|error| Error::Torch(error.to_string()))
}

fn row_major(shape: &[i64]) -> Vec<i64> {
    let mut strides = vec![1; shape.len()];
    for at in (1..shape.len()).rev() {
        strides[at - 1] = strides[at] * shape[at].max(1);
    }
    strides
}

/// The little-endian row-major bytes of `tensor`: borrowed where it lies contiguous in the CPU's memory.
pub(crate) fn bytes_of(tensor: &Tensor) -> Cow<'_, [u8]> {
    if tensor.device() == Device::Cpu && tensor.is_contiguous() {
        return Cow::Borrowed(contiguous_bytes(tensor));
    }
    let _guard = tch::no_grad_guard();
    let copy = tensor.detach().to_device(Device::Cpu).contiguous();
    Cow::Owned(contiguous_bytes(&copy).to_vec())
}

fn contiguous_bytes(tensor: &Tensor) -> &[u8] {
    let length = tensor.numel() * tensor.kind().elt_size_in_bytes();
    if length == 0 {
        return &[];
    }
    // SAFETY: a contiguous CPU tensor holds `numel` elements from `data_ptr` on, which outlive the borrow of
    // the tensor; that nobody writes them meanwhile is the condition at the head of this module.
    unsafe { slice::from_raw_parts(tensor.data_ptr().cast::<u8>(), length) }
}

/// A copy of the little-endian row-major bytes of `tensor`, on whatever device it is.
pub fn tensor_bytes(tensor: &Tensor) -> Vec<u8> {
    bytes_of(tensor).into_owned()
}

/// BLAKE3 of the little-endian row-major bytes of `tensor`.
pub fn hash_tensor(tensor: &Tensor) -> [u8; 32] {
    *blake3::hash(&bytes_of(tensor)).as_bytes()
}
