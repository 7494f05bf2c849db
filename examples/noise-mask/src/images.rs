//! Grey images with labels: the digits that are shipped, or a folder of the user's.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use rand::seq::SliceRandom as _;
use rand::{Rng, RngExt as _};
use tch::{Kind, Tensor};

/// The test set of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998), as scikit-learn
/// ships it.
const DIGITS: &[u8] = include_bytes!("../digits.csv.gz");
const DIGITS_SIDE: i64 = 8;
const DIGITS_MAXIMUM: f64 = 16.0;
const VALIDATION_PER_CLASS: usize = 30;
/// The folders of a data set of the user's, in the order of [`DataSet`]'s fields.
const FOLDERS: [&str; 3] = ["train", "validation", "test"];
/// Most files of a class in one split of a folder that are read, whatever `--limit` says.
const MOST_PER_CLASS: usize = 100_000;

/// Images and their classes.
#[derive(Debug)]
pub struct Images {
    /// [images, 1, side, side], standardised.
    pixels: Tensor,
    labels: Vec<i64>,
    /// What black is after standardisation.
    black: f64,
}

/// Images to learn from, to choose by and to judge by.
#[derive(Debug)]
pub struct DataSet {
    /// To learn from.
    pub train: Images,
    /// To choose a learning rate by.
    pub validation: Images,
    /// To judge by.
    pub test: Images,
    /// The number of classes.
    pub classes: i64,
    /// Pixels a side.
    pub side: i64,
}

impl Images {
    /// How many.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// [images, 1, side, side].
    pub fn pixels(&self) -> &Tensor {
        &self.pixels
    }

    /// The class of each.
    pub fn labels(&self) -> &[i64] {
        &self.labels
    }

    /// Some of them, by number, each moved by up to an eighth of its side; and their labels.
    pub fn shifted(&self, numbers: &[i64], rng: &mut impl Rng) -> (Tensor, Tensor) {
        let side = self.pixels.size()[2];
        let reach = side / 8;
        let padded = self.pixels.index_select(0, &Tensor::from_slice(numbers));
        let padded = padded.pad([reach; 4], "constant", self.black);
        let moved: Vec<Tensor> = (0..numbers.len() as i64)
            .map(|image| {
                let [down, right] = [(); 2].map(|()| rng.random_range(0..=2 * reach));
                padded.get(image).narrow(1, down, side).narrow(2, right, side)
            })
            .collect();
        let labels: Vec<i64> = numbers.iter().map(|number| self.labels[*number as usize]).collect();
        (Tensor::stack(&moved, 0), Tensor::from_slice(&labels))
    }
}

/// Splits the digits at random: so many of each class to learn from, thirty of each to choose by, the others
/// to judge by.
///
/// # Errors
/// When a class has no image left to judge by, or none to learn from.
pub fn digits(train_per_class: usize, rng: &mut impl Rng) -> anyhow::Result<DataSet> {
    let (rows, labels) = digit_rows(flate2::read::GzDecoder::new(DIGITS))?;
    let mut order: Vec<usize> = (0..labels.len()).collect();
    order.shuffle(rng);
    let mut taken = [0usize; 10];
    let mut parts = [const { Vec::new() }; 3];
    for number in order {
        let taken = &mut taken[labels[number] as usize];
        *taken += 1;
        let part = match *taken {
            place if place <= train_per_class => 0,
            place if place <= train_per_class.saturating_add(VALIDATION_PER_CLASS) => 1,
            _ => 2,
        };
        parts[part].push(number);
    }
    let most = taken.iter().min().map_or(0, |smallest| smallest.saturating_sub(VALIDATION_PER_CLASS + 1));
    ensure!(
        (1..=most).contains(&train_per_class),
        "{train_per_class} images of a class to learn from: --train-per-class takes 1 to {most} here"
    );
    let parts = parts.map(|numbers| {
        let pixels: Vec<f32> = numbers.iter().flat_map(|number| rows[*number].clone()).collect();
        let pixels = Tensor::from_slice(&pixels).view([-1, 1, DIGITS_SIDE, DIGITS_SIDE]) / DIGITS_MAXIMUM;
        (pixels, numbers.iter().map(|number| labels[*number]).collect::<Vec<i64>>())
    });
    Ok(data_set(parts, 10))
}

/// Pixels and labels of lines of 64 pixels and a digit.
fn digit_rows(reader: impl std::io::Read) -> anyhow::Result<(Vec<Vec<f32>>, Vec<i64>)> {
    let (mut rows, mut labels) = (Vec::new(), Vec::new());
    for record in csv::ReaderBuilder::new().has_headers(false).from_reader(reader).into_records() {
        let record = record.context("read the digits")?;
        let numbers: Vec<f32> = record.iter().map(str::parse).collect::<Result<_, _>>()?;
        let (label, pixels) = numbers.split_last().context("an empty line among the digits")?;
        ensure!(pixels.len() == (DIGITS_SIDE * DIGITS_SIDE) as usize, "{} pixels a line", pixels.len());
        ensure!((0.0..10.0).contains(label), "{label} is no digit");
        rows.push(pixels.to_vec());
        labels.push(*label as i64);
    }
    Ok((rows, labels))
}

/// Images of `folder/train/CLASS/`, `folder/validation/CLASS/` and `folder/test/CLASS/` (PNG, JPEG, BMP), as
/// grey squares of `side` pixels; at most `limit` of a class in each, the first by name.
///
/// # Errors
/// When a folder or an image cannot be read, or the three name different classes.
pub fn folder(folder: &Path, side: i64, limit: usize) -> anyhow::Result<DataSet> {
    ensure!(
        (8..=256).contains(&side) && side.count_ones() == 1,
        "images of {side} pixels a side: --side takes 8, 16, 32, 64, 128 or 256"
    );
    let mut parts = Vec::new();
    let mut of_train: Vec<OsString> = Vec::new();
    for part in FOLDERS {
        let classes = names(&folder.join(part))?;
        let found: Vec<OsString> =
            classes.iter().filter_map(|path| path.file_name()).map(OsString::from).collect();
        if parts.is_empty() {
            of_train = found;
            ensure!(of_train.len() > 1, "{}/{part} holds no two classes", folder.display());
        } else {
            let differs =
                of_train.iter().chain(&found).find(|name| of_train.contains(name) != found.contains(name));
            if let Some(name) = differs {
                bail!(
                    "{}: {} is a class of train/ or of {part}/, not of both",
                    folder.display(),
                    name.display()
                );
            }
        }
        parts.push(read_classes(&classes, side, limit.min(MOST_PER_CLASS))?);
    }
    let Ok(parts) = <[_; 3]>::try_from(parts) else { bail!("a data set has three parts") };
    Ok(data_set(parts, of_train.len() as i64))
}

fn read_classes(classes: &[PathBuf], side: i64, limit: usize) -> anyhow::Result<(Tensor, Vec<i64>)> {
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for (label, class) in classes.iter().enumerate() {
        let files = names(class)?;
        if files.is_empty() {
            bail!("{} holds no image", class.display());
        }
        for file in files.into_iter().take(limit) {
            let image = tch::vision::image::load_and_resize(&file, side, side);
            let image = image.with_context(|| format!("read the image {}", file.display()))?;
            pixels.push(image.to_kind(Kind::Float).mean_dim([0i64].as_slice(), true, Kind::Float) / 255.0);
            labels.push(label as i64);
        }
    }
    Ok((Tensor::stack(&pixels, 0), labels))
}

/// What a folder holds, in order, hidden files left out.
fn names(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with('.') {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Standardised by mean and deviation of the first part, which is learnt from.
fn data_set(parts: [(Tensor, Vec<i64>); 3], classes: i64) -> DataSet {
    let learnt_from = &parts[0].0;
    let side = learnt_from.size()[2];
    let mean = learnt_from.mean(Kind::Double).double_value(&[]);
    let deviation = learnt_from.std(false).double_value(&[]).max(1e-6);
    let [train, validation, test] = parts.map(|(pixels, labels)| Images {
        pixels: (pixels - mean) / deviation,
        labels,
        black: -mean / deviation,
    });
    DataSet { train, validation, test, classes, side }
}
