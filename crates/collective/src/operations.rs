//! The operations of a process group.
//!
//! Each comes twice: `start_x` launches and returns a [`Work`]; `x` also waits for it, at most the group's
//! timeout. Tensors are dense, contiguous and on the group's device, of kind f32, bf16, f16, f64, i64, i32,
//! i8 or u8; shape and kind of what is sent agree on all ranks. What can be seen to be wrong on this rank is
//! [`Error::Invalid`], before anything is launched; what only differs between ranks is an error on all of
//! them, at the latest at the deadline and in most cases within a second of the launch. Tensors without
//! elements are allowed everywhere and wait for nobody. Where several ranks have to be at one place, an
//! all-reduce of one element is the barrier.
//!
//! What c10d's Gloo backend lacks is built from what it has:
//! - `reduce_scatter` (Gloo's own is an all-reduce that throws most of its result away): every rank sends
//!   each other rank its part (all-to-all), then reduces what it got in order of rank, in f32 for bf16 and
//!   f16, and rounds once. It moves half the bytes, and the result depends on nothing but the values.
//!
//! Everything else is c10d's. Over Gloo and NCCL alike, an all-reduce of bf16 or f16 rounds after every
//! addition.

use tch::Tensor;

use crate::checks::{self, Unfit};
use crate::deadline::Deadline;
use crate::diagnosis::{Failure, Note};
use crate::error::{Error, Result};
use crate::ffi::{Kind, Launch};
use crate::group::ProcessGroup;
use crate::progress::{Standing, tag};
use crate::reduce::Reduce;
use crate::work::{Finish, Pending, Work, complete};

impl ProcessGroup {
    /// Copies `tensor` from rank `root` to all ranks.
    ///
    /// # Errors
    /// See the [crate's](crate) invariants; this goes for all operations.
    pub fn broadcast(&self, tensor: &mut Tensor, root: usize) -> Result<()> {
        complete(self.start_broadcast(tensor, root))
    }

    /// Starts [`broadcast`](Self::broadcast).
    ///
    /// # Errors
    /// As for [`broadcast`](Self::broadcast); this goes for all operations.
    pub fn start_broadcast(&self, tensor: &mut Tensor, root: usize) -> Result<Work> {
        self.check("broadcast", || {
            self.check_root(root)?;
            self.check_tensor("tensor", tensor)
        })?;
        let outputs = [tensor.shallow_clone()];
        let launch = Launch { kind: Kind::Broadcast, argument: root, input: None, outputs: &outputs };
        self.start(format!("broadcast {root} {}", shape(tensor)), &launch, Finish::Nothing)
    }

    /// Reduces `tensor` across all ranks, element by element, in place. The result is the same on every rank,
    /// bit for bit.
    ///
    /// # Errors
    /// As for [`broadcast`](Self::broadcast).
    pub fn all_reduce(&self, tensor: &mut Tensor, reduce: Reduce) -> Result<()> {
        complete(self.start_all_reduce(tensor, reduce))
    }

    /// Starts [`all_reduce`](Self::all_reduce).
    ///
    /// # Errors
    /// As for [`broadcast`](Self::broadcast).
    pub fn start_all_reduce(&self, tensor: &mut Tensor, reduce: Reduce) -> Result<Work> {
        self.check("all_reduce", || {
            self.check_tensor("tensor", tensor)?;
            check_reduce(tensor, reduce)
        })?;
        let outputs = [tensor.shallow_clone()];
        let launch =
            Launch { kind: Kind::AllReduce, argument: reduce.in_c10d(), input: None, outputs: &outputs };
        self.start(format!("all_reduce {} {}", reduce.name(), shape(tensor)), &launch, Finish::Nothing)
    }

    /// Copies every rank's `input` to all ranks, one behind the other in order of rank: `output` has
    /// `world_size` times the elements of `input`.
    ///
    /// # Errors
    /// As for [`broadcast`](Self::broadcast).
    pub fn all_gather_into(&self, output: &mut Tensor, input: &Tensor) -> Result<()> {
        complete(self.start_all_gather_into(output, input))
    }

    /// Starts [`all_gather_into`](Self::all_gather_into).
    ///
    /// # Errors
    /// As for [`broadcast`](Self::broadcast).
    pub fn start_all_gather_into(&self, output: &mut Tensor, input: &Tensor) -> Result<Work> {
        self.check("all_gather_into", || self.check_parts("output", output, "input", input))?;
        let outputs = [output.view([-1])];
        let launch = Launch {
            kind: Kind::AllGatherInto,
            argument: 0,
            input: Some(&input.view([-1])),
            outputs: &outputs,
        };
        self.start(format!("all_gather_into {}", shape(input)), &launch, Finish::Nothing)
    }

    /// Reduces `input` across all ranks and leaves rank `r` with the `r`-th of `world_size` equal parts, in
    /// `output`: `input` has `world_size` times the elements of `output`.
    ///
    /// # Errors
    /// As for [`broadcast`](Self::broadcast).
    pub fn reduce_scatter(&self, output: &mut Tensor, input: &Tensor, reduce: Reduce) -> Result<()> {
        complete(self.start_reduce_scatter(output, input, reduce))
    }

    /// Starts [`reduce_scatter`](Self::reduce_scatter). Over Gloo it takes a buffer of the size of `input`,
    /// and [`Work::wait`] does the reduction.
    ///
    /// # Errors
    /// As for [`broadcast`](Self::broadcast).
    pub fn start_reduce_scatter(&self, output: &mut Tensor, input: &Tensor, reduce: Reduce) -> Result<Work> {
        self.check("reduce_scatter", || {
            self.check_parts("input", input, "output", output)?;
            check_reduce(input, reduce)
        })?;
        let description = format!("reduce_scatter {} {}", reduce.name(), shape(input));
        let input = input.view([-1]);
        if self.inner.polls {
            let outputs = [output.view([-1])];
            let argument = reduce.in_c10d();
            let launch =
                Launch { kind: Kind::ReduceScatter, argument, input: Some(&input), outputs: &outputs };
            return self.start(description, &launch, Finish::Nothing);
        }
        let received = input.f_empty_like().map_err(|error| {
            self.inner.invalid("reduce_scatter", format!("no memory for {}: {error}", shape(&input)))
        })?;
        let parts = received.view([self.world_size() as i64, output.numel() as i64]);
        let outputs = [received];
        let launch = Launch { kind: Kind::AllToAll, argument: 0, input: Some(&input), outputs: &outputs };
        self.start(description, &launch, Finish::Reduce { parts, output: output.shallow_clone(), reduce })
    }

    /// Copies `bytes` from rank `root` to all ranks; elsewhere what they held is replaced. Takes two
    /// broadcasts, the length and the bytes, each with the group's deadline.
    ///
    /// # Errors
    /// As for [`broadcast`](Self::broadcast).
    pub fn broadcast_bytes(&self, bytes: &mut Vec<u8>, root: usize) -> Result<()> {
        let device = self.device();
        let is_root = self.rank() == root;
        let mut length = Tensor::from(if is_root { bytes.len() as i64 } else { 0 }).to_device(device);
        self.broadcast(&mut length, root)?;
        if is_root {
            return self.broadcast(&mut Tensor::from_slice(bytes).to_device(device), root);
        }
        let length = i64::try_from(&length).map_err(|error| self.cannot_hold("a length", &error))?;
        let mut received = Tensor::f_empty([length], (tch::Kind::Uint8, device))
            .map_err(|error| self.cannot_hold(&format!("{length} bytes"), &error))?;
        self.broadcast(&mut received, root)?;
        let mut copy = Vec::new();
        copy.try_reserve_exact(received.numel()).map_err(|error| self.cannot_hold("a copy", &error))?;
        copy.resize(received.numel(), 0);
        received
            .f_copy_data_u8(&mut copy, received.numel())
            .map_err(|error| self.cannot_hold("a copy", &error))?;
        *bytes = copy;
        Ok(())
    }

    /// Ends the group, because this rank cannot take what the others send.
    fn cannot_hold(&self, what: &str, error: &dyn std::error::Error) -> Error {
        let sequence = self.inner.progress().report(Standing::Member).launched;
        let deadline = Deadline::after(self.inner.timeout);
        let note = Note { description: "broadcast_bytes".to_owned(), sequence, collective: false, deadline };
        self.inner.fail(&note, Failure::Broken(format!("cannot hold {what}: {error}")))
    }

    fn start(&self, description: String, launch: &Launch<'_>, finish: Finish) -> Result<Work> {
        self.inner.refuse_if_ended(&description)?;
        let sequence = self.inner.progress().launch(&description);
        let deadline = Deadline::after(self.inner.timeout);
        let tag = tag(sequence, &description);
        let note = Note { description, sequence, collective: true, deadline };
        let pending = if launch.is_empty() {
            Pending::Nothing
        } else {
            match self.inner.raw.launch(launch, tag) {
                Ok(work) => Pending::InC10d(work),
                Err(thrown) => return Err(self.inner.fail(&note, Failure::Broken(thrown.to_string()))),
            }
        };
        Ok(Work::new(&self.inner, note, pending, finish))
    }

    fn check(
        &self,
        operation: &'static str,
        check: impl FnOnce() -> std::result::Result<(), Unfit>,
    ) -> Result<()> {
        check().map_err(|unfit| self.inner.invalid(operation, unfit.to_string()))
    }

    fn check_tensor(&self, name: &'static str, tensor: &Tensor) -> std::result::Result<(), Unfit> {
        checks::tensor(name, tensor, self.device())
    }

    fn check_parts(
        &self,
        whole_name: &'static str,
        whole: &Tensor,
        part_name: &'static str,
        part: &Tensor,
    ) -> std::result::Result<(), Unfit> {
        self.check_tensor(whole_name, whole)?;
        self.check_tensor(part_name, part)?;
        checks::same_kind(whole, part)?;
        checks::parts(whole, part, self.world_size())
    }

    fn check_root(&self, rank: usize) -> std::result::Result<(), Unfit> {
        let world_size = self.world_size();
        if rank < world_size { Ok(()) } else { Err(Unfit::Root { rank, world_size }) }
    }
}

fn check_reduce(tensor: &Tensor, reduce: Reduce) -> std::result::Result<(), Unfit> {
    if reduce == Reduce::Mean { checks::has_mean(tensor) } else { Ok(()) }
}

/// Kind and sizes.
fn shape(tensor: &Tensor) -> String {
    format!("{:?} {:?}", tensor.kind(), tensor.size())
}
