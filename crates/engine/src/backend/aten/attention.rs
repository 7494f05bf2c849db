//! Attention of a step's rows over the cache, by the kernel that device and element type have.

#[cfg(feature = "cuda")]
mod flash;
mod padded;

use model::ModelConfig;
use tch::{Device, Kind, Tensor};

use super::cache::{LayerCache, Shape};
use super::rows::Order;
use super::upload::{Arrived, Upload};
use padded::{Padded, PlacedPadded};

/// What the rows of a step see, for each kind of layer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Attention {
    /// The windows that layers have, each once, and what the rows see then.
    of_windows: Vec<(Option<i64>, Kernel)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Kernel {
    Padded(Padded),
    #[cfg(feature = "cuda")]
    Flash(flash::Flash),
}

/// The same on the device.
#[derive(Debug)]
pub(crate) struct PlacedAttention {
    of_windows: Vec<(Option<i64>, PlacedKernel)>,
}

#[derive(Debug)]
enum PlacedKernel {
    Padded(PlacedPadded),
    #[cfg(feature = "cuda")]
    Flash(flash::PlacedFlash),
}

/// What of a network decides about its attention.
#[derive(Debug)]
pub(crate) struct Setting {
    shape: Shape,
    /// The windows that layers have, each once.
    windows: Vec<Option<i64>>,
    /// Element type and device.
    place: (Kind, Device),
}

impl Setting {
    pub(crate) fn new(model: &ModelConfig, shape: Shape, place: (Kind, Device)) -> Self {
        let mut windows: Vec<Option<i64>> = (0..model.layers).map(|layer| model.window(layer)).collect();
        windows.sort_unstable();
        windows.dedup();
        Self { shape, windows, place }
    }

    /// Whether attention is FlashAttention.
    pub(crate) fn is_flash(&self) -> bool {
        #[cfg(feature = "cuda")]
        return model::cuda::flash::takes(self.place.0, self.place.1, self.shape.head_dim);
        #[cfg(not(feature = "cuda"))]
        false
    }

    fn kernel(&self, order: &Order, window: Option<i64>, upload: &mut Upload) -> Kernel {
        #[cfg(feature = "cuda")]
        if self.is_flash() {
            return Kernel::Flash(flash::Flash::new(order, window, &self.shape, upload));
        }
        Kernel::Padded(Padded::new(order, window, &self.shape, upload))
    }
}

impl Attention {
    pub(crate) fn new(order: &Order, setting: &Setting, upload: &mut Upload) -> Self {
        let of_windows =
            setting.windows.iter().map(|window| (*window, setting.kernel(order, *window, upload))).collect();
        Self { of_windows }
    }

    pub(crate) fn place(&self, arrived: &Arrived, setting: &Setting) -> PlacedAttention {
        let place = |kernel: &Kernel| match kernel {
            Kernel::Padded(padded) => PlacedKernel::Padded(padded.place(arrived, setting.place)),
            #[cfg(feature = "cuda")]
            Kernel::Flash(flash) => PlacedKernel::Flash(flash.place(arrived)),
        };
        let of_windows = self.of_windows.iter().map(|(window, kernel)| (*window, place(kernel))).collect();
        PlacedAttention { of_windows }
    }
}

impl PlacedAttention {
    /// Attention of `queries`, `[rows, heads, head_dim]`, over the cache of a layer with this window; the
    /// same shape.
    ///
    /// # Panics
    /// When no layer has such a window.
    pub(crate) fn attend(&self, cache: &LayerCache, window: Option<i64>, queries: &Tensor) -> Tensor {
        let kernel = self.of_windows.iter().find(|(other, _)| *other == window);
        match &kernel.expect("the windows are those of the layers").1 {
            PlacedKernel::Padded(padded) => padded.attend(cache, queries),
            #[cfg(feature = "cuda")]
            PlacedKernel::Flash(flash) => flash.attend(cache, queries),
        }
    }
}
