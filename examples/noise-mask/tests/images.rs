//! Images, masks over them, and what is said of folders that are not as they must be.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::path::Path;

use noise_mask::images::{digits, folder};
use noise_mask::mask_policy::{Grid, MaskPolicy};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;
use tch::{Device, Kind, Tensor};

fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// An image of one colour.
fn write_image(path: &Path, colour: [i64; 3]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let image = Tensor::from_slice(&colour).view([3, 1, 1]).expand([3, 9, 12], false);
    tch::vision::image::save(&image.contiguous(), path).unwrap();
}

#[test]
fn digits_are_split_by_class_and_by_seed() {
    let data = digits(30, &mut rng(1)).unwrap();
    assert_eq!(data.validation.len(), 300);
    assert_eq!((data.train.len(), data.test.len()), (300, 1197));
    for class in 0..10 {
        assert_eq!(data.train.labels().iter().filter(|label| **label == class).count(), 30);
    }
    let pixels = data.train.pixels();
    assert!(pixels.mean(Kind::Double).double_value(&[]).abs() < 1e-5);
    assert!((pixels.std(false).double_value(&[]) - 1.0).abs() < 1e-5);
    assert_eq!(digits(30, &mut rng(1)).unwrap().train.labels(), data.train.labels());
    assert_ne!(digits(30, &mut rng(2)).unwrap().train.labels(), data.train.labels());
    for none_left in [0, 144, 100_000] {
        let said = digits(none_left, &mut rng(1)).unwrap_err().to_string();
        assert!(said.contains("--train-per-class takes 1 to 143 here"), "{said}");
    }
}

#[test]
fn images_move_by_at_most_an_eighth_of_their_side() {
    let data = digits(1, &mut rng(1)).unwrap();
    let (moved, labels) = data.train.shifted(&[3; 200], &mut rng(5));
    assert_eq!(moved.size(), [200, 1, 8, 8]);
    assert_eq!(labels, Tensor::full([200], data.train.labels()[3], (Kind::Int64, Device::Cpu)));
    let original = data.train.pixels().get(3);
    let unmoved = (0..200).filter(|image| moved.get(*image) == original).count();
    // One of nine places.
    assert!((8..50).contains(&unmoved), "{unmoved} of 200");
    let centre = original.narrow(1, 3, 2).narrow(2, 3, 2);
    for image in 0..200 {
        let found = (2..=4).any(|row| {
            (2..=4).any(|column| moved.get(image).narrow(1, row, 2).narrow(2, column, 2) == centre)
        });
        assert!(found, "image {image} has moved further");
    }
}

#[test]
fn a_folder_of_images_is_read_by_class() {
    let root = tempfile::tempdir().unwrap();
    for part in ["train", "validation", "test"] {
        for (class, colour) in [("dark", [0, 0, 0]), ("light", [255, 255, 255]), ("red", [255, 0, 0])] {
            for number in 0..3 {
                write_image(&root.path().join(part).join(class).join(format!("{number}.png")), colour);
            }
        }
    }
    let data = folder(root.path(), 16, 2).unwrap();
    assert_eq!((data.classes, data.side, data.train.labels()), (3, 16, [0, 0, 1, 1, 2, 2].as_slice()));
    assert_eq!(data.test.pixels().size(), [6, 1, 16, 16]);
    // Grey levels 0, 1 and 1/3: mean 4/9.
    let levels = [0, 2, 4].map(|image| data.train.pixels().double_value(&[image, 0, 7, 7]));
    assert!(levels[0] < levels[2] && levels[2] < levels[1], "{levels:?}");
    let share = (levels[2] - levels[0]) / (levels[1] - levels[0]);
    assert!((share - 1.0 / 3.0).abs() < 1e-5, "{levels:?}");

    let said = folder(root.path(), 20, 2).unwrap_err().to_string();
    assert!(said.contains("--side takes 8, 16"), "{said}");
    fs::write(root.path().join("test/red/9.png"), "no image").unwrap();
    let said = format!("{:#}", folder(root.path(), 16, 9).unwrap_err());
    assert!(said.contains("read the image") && said.contains("test/red/9.png"), "{said}");
    fs::remove_dir_all(root.path().join("test/red")).unwrap();
    let said = folder(root.path(), 16, 2).unwrap_err().to_string();
    assert!(said.contains("red is a class of train/ or of test/, not of both"), "{said}");
    let said = format!("{:#}", folder(&root.path().join("nowhere"), 16, 2).unwrap_err());
    assert!(said.contains("nowhere/train"), "{said}");
}

#[test]
fn masks_are_cells_made_larger_and_blurred() {
    let grid = Grid::new(4, 16).unwrap();
    let options = (Kind::Double, Device::Cpu);
    // What is the same everywhere stays so, at the borders too.
    let flat = grid.masks(&Tensor::full([2, 16], 0.3, options));
    assert_eq!(flat.size(), [2, 1, 16, 16]);
    assert!((flat - 0.3).abs().max().double_value(&[]) < 1e-6);
    // One open cell: brightest in its middle, and further away darker.
    let mut cells = vec![0.0; 16];
    cells[5] = 1.0;
    let masks = grid.masks(&Tensor::from_slice(&cells).unsqueeze(0));
    let row: Vec<f64> = (5..16).map(|column| masks.double_value(&[0, 0, 5, column])).collect();
    assert!(row[0] > 0.09 && row[10] == 0.0, "{row:?}");
    // As far as the blur of seven pixels reaches.
    assert!(row[1..].is_sorted_by(|near, far| near > far), "{row:?}");
    for cells in [1, 17] {
        assert!(Grid::new(cells, 16).unwrap_err().to_string().contains("--grid takes 2 to 16"));
    }
}

#[test]
fn the_bases_follow_the_heads_and_draws_mix_both() {
    let data = digits(10, &mut rng(1)).unwrap();
    let grid = Grid::new(8, 8).unwrap();
    let (mut policy, mut other) = (MaskPolicy::new(grid.cells(), 4), MaskPolicy::new(grid.cells(), 4));
    let before = policy.bases().distributions(1).mean();
    let distributions = policy.distributions(data.train.pixels());
    assert_eq!(distributions.mean().size(), [100, 64]);
    assert_eq!(distributions.mean(), other.distributions(data.train.pixels()).mean());
    let after = policy.bases().distributions(1).mean();
    let moved = (&after - &before).abs().max().double_value(&[]);
    assert!(moved > 0.0 && moved < 0.02, "a hundredth of what the heads say: {moved}");
    // U(0, 1) at first, and nine tenths of each mask are the bases'.
    let spread = before.std(true).double_value(&[]);
    assert!((0.02..0.2).contains(&spread), "{spread}");
    let away = (distributions.mean() - before).abs().mean(Kind::Double).double_value(&[]);
    assert!((0.0..0.1).contains(&away) && away > moved, "{away}");
}
