//! A small convolutional classifier, for images of 8 pixels a side and more.

use tch::nn::{self, ModuleT as _};
use tch::{Kind, Tensor};

use crate::images::Images;
use crate::scores::Scores;

/// Side of the last feature map.
const LAST_SIDE: i64 = 4;
/// Most channels of a block.
const MOST_CHANNELS: i64 = 128;
/// Images that are answered at once.
const EVALUATION_BATCH: i64 = 512;

/// Convolution, batch normalisation, ReLU and pooling until four pixels a side are left, one more
/// convolution, and a linear layer.
#[derive(Debug)]
pub(crate) struct Classifier {
    variables: nn::VarStore,
    network: nn::SequentialT,
}

impl Classifier {
    /// For images of `side` pixels a side, which is a power of two from 8 on. Its first weights are a
    /// function of the seed.
    pub(crate) fn new(side: i64, classes: i64, seed: i64) -> Self {
        tch::manual_seed(seed);
        let variables = nn::VarStore::new(tch::Device::Cpu);
        let root = variables.root();
        let mut network = nn::seq_t();
        let (mut side, mut from, mut to) = (side, 1, 16);
        while side > LAST_SIDE {
            network = convolution(network, &root / format!("block_{side}"), from, to);
            network = network.add_fn(|x| x.max_pool2d_default(2));
            (side, from, to) = (side / 2, to, (to * 2).min(MOST_CHANNELS));
        }
        network = convolution(network, &root / "last", from, to);
        let features = to * side * side;
        network = network.add_fn(move |x| x.view([-1, features]));
        let network = network.add(nn::linear(&root / "answer", features, classes, Default::default()));
        Self { variables, network }
    }

    /// Its weights, for an optimizer.
    pub(crate) fn variables(&self) -> &nn::VarStore {
        &self.variables
    }

    /// Logits [images, classes] of images [images, 1, side, side].
    pub(crate) fn logits(&self, images: &Tensor, train: bool) -> Tensor {
        self.network.forward_t(images, train)
    }

    /// The cross-entropy of each image, [images], in f64.
    pub(crate) fn cross_entropies(&self, images: &Tensor, labels: &Tensor) -> Tensor {
        let logprobs = self.logits(images, true).log_softmax(-1, Kind::Double);
        -logprobs.gather(1, &labels.unsqueeze(1), false).squeeze_dim(1)
    }

    /// How well it answers; `masks` gives a mask [images, 1, side, side] for each lot of images.
    ///
    /// # Errors
    /// When the logits have no largest element.
    pub(crate) fn evaluate(
        &self,
        images: &Images,
        masks: impl Fn(i64) -> Option<Tensor>,
    ) -> anyhow::Result<Scores> {
        let _guard = tch::no_grad_guard();
        let mut answers = Vec::with_capacity(images.len());
        for pixels in images.pixels().split(EVALUATION_BATCH, 0) {
            let masked = match masks(pixels.size()[0]) {
                Some(masks) => pixels * masks,
                None => pixels,
            };
            answers.extend(Vec::<i64>::try_from(self.logits(&masked, false).argmax(-1, false))?);
        }
        Ok(Scores::of(&answers, images.labels()))
    }
}

fn convolution(network: nn::SequentialT, path: nn::Path<'_>, from: i64, to: i64) -> nn::SequentialT {
    let config = nn::ConvConfig { padding: 1, bias: false, ..Default::default() };
    network
        .add(nn::conv2d(&path / "convolution", from, to, 3, config))
        .add(nn::batch_norm2d(&path / "norm", to, normalisation()))
        .add_fn(Tensor::relu)
}

/// Batch normalisation that begins as PyTorch's does, with scales of one.
pub(crate) fn normalisation() -> nn::BatchNormConfig {
    nn::BatchNormConfig { ws_init: nn::Init::Const(1.0), ..Default::default() }
}
