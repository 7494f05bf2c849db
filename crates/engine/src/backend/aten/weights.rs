//! A policy's weights on the engine's device.

use model::{ModelConfig, Network, Weights};
use tch::{Device, Kind, Tensor};

use super::failure::caught;
use crate::Error;
use crate::backend::ReadGroup;

/// The weights as the network's functions take them.
#[derive(Debug)]
pub(crate) struct AtenWeights {
    network: Network,
}

impl AtenWeights {
    /// Copies weights to a device, one group after the other, as elements of `kind`.
    ///
    /// # Errors
    /// When they cannot be read, or the device has no room for them.
    pub(crate) fn copy(
        config: &ModelConfig,
        read: ReadGroup<'_>,
        (kind, device): (Kind, Device),
    ) -> Result<Self, Error> {
        let _guard = tch::no_grad_guard();
        let mut flats = Vec::with_capacity(config.layers + 2);
        for group in 0..config.layers + 2 {
            let flat = read(group)?;
            let mut place = Tensor::f_empty(flat.size(), (kind, device))?;
            place.f_copy_(&flat)?;
            flats.push(place);
        }
        let copied = Weights::from_flats(config, flats).map_err(|_| Error::Weights)?;
        Ok(Self { network: caught(|| copied.network(config))? })
    }

    pub(crate) fn network(&self) -> &Network {
        &self.network
    }

    /// Element type and device.
    pub(crate) fn place(&self) -> (Kind, Device) {
        (self.network.embedding.kind(), self.network.embedding.device())
    }
}
