//! CUDA graphs: work on a GPU that is recorded once and then started as a whole, which costs the host one
//! call instead of one for each operator.
//!
//! A recording fixes every operator, shape and address. So what a replay is to work on is written into the
//! tensors that the recording read, and its results appear in the tensors that the recording made. Nothing
//! that waits for the device or copies from the host's memory can be recorded.

use std::ffi::{c_char, c_int, c_void};
use std::ptr::NonNull;

use tch::{Device, TchError};

unsafe extern "C" {
    fn sluice_graph_recorder(device: c_int, made: *mut *mut c_void) -> *mut c_char;
    fn sluice_graph_recorder_free(recorder: *mut c_void);
    fn sluice_graph_begin(recorder: *const c_void, begun: *mut *mut c_void) -> *mut c_char;
    fn sluice_graph_end(recording: *mut c_void, made: *mut *mut c_void) -> *mut c_char;
    fn sluice_graph_replay(graph: *mut c_void) -> *mut c_char;
    fn sluice_graph_free(graph: *mut c_void);
}

/// Records graphs on one GPU. Its graphs share the memory of what is made inside of them: they are to be
/// replayed one after the other, and results used before the next replay.
#[derive(Debug)]
pub struct Recorder(NonNull<c_void>);

/// Work that was recorded and can be started again.
#[derive(Debug)]
pub struct Graph(NonNull<c_void>);

// SAFETY: both own what they point to, and neither CUDA nor ATen ties it to a thread.
unsafe impl Send for Recorder {}
// SAFETY: as above.
unsafe impl Send for Graph {}

/// A recording that is under way on this thread.
struct Recording(NonNull<c_void>);

impl Recorder {
    /// A recorder for a GPU.
    ///
    /// # Errors
    /// When the device is none, or not there.
    pub fn new(device: Device) -> Result<Self, TchError> {
        let index = match device {
            Device::Cuda(index) => c_int::try_from(index).ok(),
            _ => None,
        };
        let index = index.ok_or_else(|| TchError::Torch(format!("{device:?} has no CUDA graphs")))?;
        let mut made = std::ptr::null_mut();
        // SAFETY: on success the bridge stores a newly allocated recorder, which this value frees.
        unsafe { super::outcome(sluice_graph_recorder(index, &raw mut made))? };
        Ok(Self(some(made)?))
    }

    /// Records what `work` does on the GPU, without running it. The same work must have run once before, so
    /// that all its kernels are loaded.
    ///
    /// # Errors
    /// When the driver refuses, mostly because something in `work` cannot be recorded.
    pub fn record<T>(&self, work: impl FnOnce() -> T) -> Result<(Graph, T), TchError> {
        let mut begun = std::ptr::null_mut();
        // SAFETY: the recorder lives; on success the bridge stores a recording, which `Recording` ends once.
        unsafe { super::outcome(sluice_graph_begin(self.0.as_ptr(), &raw mut begun))? };
        let recording = Recording(some(begun)?);
        let made = work();
        Ok((recording.end()?, made))
    }
}

impl Recording {
    fn end(self) -> Result<Graph, TchError> {
        let recording = self.0;
        std::mem::forget(self);
        let mut made = std::ptr::null_mut();
        // SAFETY: the recording lives, and nobody uses it after this call, which frees it. On success the
        // bridge stores a graph, which `Graph` frees.
        unsafe { super::outcome(sluice_graph_end(recording.as_ptr(), &raw mut made))? };
        Ok(Graph(some(made)?))
    }
}

/// A recording whose work panicked: ended, so that the thread's stream is its own again, and thrown away.
impl Drop for Recording {
    fn drop(&mut self) {
        let _ = Self(self.0).end();
    }
}

impl Graph {
    /// Runs the recorded work, behind what this thread has given the GPU to do so far. Does not wait for it.
    ///
    /// # Errors
    /// When the driver refuses.
    ///
    /// # Safety
    /// Every tensor that the recorded work read or wrote and did not make itself still lives, at its address;
    /// so do those of its own that are read afterwards.
    pub unsafe fn replay(&self) -> Result<(), TchError> {
        // SAFETY: the graph lives, and the caller keeps alive what it works on.
        unsafe { super::outcome(sluice_graph_replay(self.0.as_ptr())) }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // SAFETY: this value owns the recorder.
        unsafe { sluice_graph_recorder_free(self.0.as_ptr()) }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: this value owns the graph.
        unsafe { sluice_graph_free(self.0.as_ptr()) }
    }
}

fn some(pointer: *mut c_void) -> Result<NonNull<c_void>, TchError> {
    NonNull::new(pointer).ok_or_else(|| TchError::Torch("the bridge to CUDA graphs gave nothing".to_owned()))
}
