//! Large zeroed arrays: aligned to pages, on huge pages where the system gives them, which matters for
//! weights that are read from beginning to end in every step.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::Pod;
use memmap2::{Advice, MmapMut};

/// From this size on huge pages are asked for.
const HUGE_PAGE: usize = 2 << 20;

/// An array of zeros at first. The system gives its memory page by page as it is first written.
#[derive(Debug)]
pub(crate) struct Buffer<T> {
    map: MmapMut,
    length: usize,
    element: PhantomData<T>,
}

impl<T: Pod> Buffer<T> {
    /// An array of `length` elements.
    ///
    /// # Errors
    /// When the system has no room for it.
    pub(crate) fn zeros(length: usize) -> std::io::Result<Self> {
        let bytes = length.checked_mul(size_of::<T>()).ok_or(std::io::ErrorKind::OutOfMemory)?;
        // An empty mapping is an error to the system.
        let map = MmapMut::map_anon(bytes.max(1))?;
        if bytes >= HUGE_PAGE {
            // Refused advice costs speed, never correctness.
            drop(map.advise(Advice::HugePage));
        }
        Ok(Self { map, length, element: PhantomData })
    }
}

impl<T: Pod> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        bytemuck::cast_slice(&self.map[..self.length * size_of::<T>()])
    }
}

impl<T: Pod> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.map[..self.length * size_of::<T>()])
    }
}
