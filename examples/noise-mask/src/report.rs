//! What a study found, as tables and as a picture.

use std::fmt::{self, Write as _};

use algo::Interval;

use crate::method::Method;
use crate::probe::{Probe, Probed};
use crate::study::{Results, Run};
use crate::training::MaskFigures;

/// Sizes of the picture, in pixels.
const WIDTH: f64 = 760.0;
const ROW: f64 = 34.0;
const TOP: f64 = 40.0;
const LABELS: f64 = 260.0;
const RIGHT: f64 = 20.0;
const CELL: f64 = 10.0;
/// Grey that is read on white and on black.
const INK: &str = "#808080";
const MARK: &str = "#2f7fd6";

/// The tables, in Markdown.
pub fn tables(results: &Results) -> String {
    let [train, validation, test] = results.images;
    let seeds = results.of(Method::NoMask).count();
    let heading = format!(
        "{train} images to learn from, {validation} to choose learning rates by, {test} to judge by, {seeds} seeds; \
         accuracy and macro-F1 in percent, ± half of the 95 % interval over seeds\n"
    );
    [heading, gains(results), rates(results), masks(results), probes(results)].concat()
}

/// What each kind of pre-training is worth.
fn gains(results: &Results) -> String {
    let mut table = Table::new(&[
        "pre-training",
        "learning rate",
        "accuracy before fine-tuning",
        "accuracy",
        "macro-F1",
        "gain in accuracy",
        "gain in macro-F1",
    ]);
    for method in Method::ALL {
        let over_no_mask = [accuracy, macro_f1].map(|figure| match method {
            Method::NoMask => String::new(),
            _ => percent(results.gain(method, Method::NoMask, figure)),
        });
        let figures = [
            method.to_string(),
            results.learning_rate(method).map_or_else(String::new, |rate| rate.to_string()),
            percent(results.mean(method, |run| Some(run.outcome.pretrained.accuracy))),
            percent(results.mean(method, |run| Some(accuracy(run)))),
            percent(results.mean(method, |run| Some(macro_f1(run)))),
        ];
        table.row(figures.into_iter().chain(over_no_mask));
    }
    let mut learned = Table::new(&["what learning is worth", "gain in accuracy", "gain in macro-F1"]);
    for (method, over) in
        [(Method::Paper, Method::RandomMasksScaled), (Method::Reinforce, Method::RandomMasks)]
    {
        let over_random = [accuracy, macro_f1].map(|figure| percent(results.gain(method, over, figure)));
        learned.row([format!("{method}, over {over}")].into_iter().chain(over_random));
    }
    table.text + &learned.text
}

/// The accuracy with each learning rate, and how many classifiers came to no number.
fn rates(results: &Results) -> String {
    let rates = &results.learning_rates;
    let titles: Vec<String> = rates.iter().map(|rate| format!("learning rate {rate}")).collect();
    let mut table = Table::new(
        &[&["accuracy by learning rate"], &*titles.iter().map(String::as_str).collect::<Vec<_>>()].concat(),
    );
    for method in Method::ALL {
        let cells = rates.iter().map(|rate| {
            let found: Vec<f64> = results.with(method, *rate).map(accuracy).collect();
            let diverged =
                results.with(method, *rate).filter(|run| run.outcome.diverged_in_epoch.is_some()).count();
            let note = if diverged > 0 { format!(" ({diverged} diverged)") } else { String::new() };
            percent(Interval::of(&found)) + &note
        });
        table.row([method.to_string()].into_iter().chain(cells));
    }
    table.text
}

/// What the masks have become.
fn masks(results: &Results) -> String {
    let mut table =
        Table::new(&["masks at the end", "mean", "entropy (nats)", "spread between images", "ln Σ p"]);
    for method in Method::ALL.into_iter().filter(|method| method.masks()) {
        let figures: [fn(&MaskFigures) -> f64; 4] = [
            |masks| mean(&masks.cells),
            |masks| masks.entropy,
            |masks| masks.spread,
            |masks| masks.log_density_factor,
        ];
        let cells =
            figures.map(|figure| number(results.mean(method, |run| run.outcome.masks.as_ref().map(figure))));
        table.row([method.to_string()].into_iter().chain(cells));
    }
    table.text
}

/// What policies have learnt of a known cost.
fn probes(results: &Results) -> String {
    let mut table = Table::new(&[
        "told that light through the upper half costs",
        "mask, upper half",
        "mask, lower half",
        "entropy (nats)",
    ]);
    for probe in Probe::ALL {
        let figures: [fn(&Probed) -> f64; 3] =
            [|probed| probed.upper, |probed| probed.lower, |probed| probed.entropy];
        let cells = figures.map(|figure| number(results.probed(probe, figure)));
        table.row([probe.to_string()].into_iter().chain(cells));
    }
    table.text
}

/// A table in Markdown, with an empty line before it.
struct Table {
    text: String,
}

impl Table {
    fn new(titles: &[&str]) -> Self {
        let mut table = Self { text: "\n".to_owned() };
        table.row(titles.iter().map(|title| (*title).to_owned()));
        table.row(titles.iter().map(|_| "---".to_owned()));
        table
    }

    fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.text += &format!("| {} |\n", cells.into_iter().collect::<Vec<_>>().join(" | "));
    }
}

/// The gains over no mask with their intervals and each seed's, and the mean masks, as SVG.
///
/// # Errors
/// None that a `String` gives.
pub fn picture(results: &Results) -> Result<String, fmt::Error> {
    let methods = &Method::ALL[1..];
    let reach = scale(results);
    let masked: Vec<Method> = Method::ALL.into_iter().filter(|method| method.masks()).collect();
    let grid = masked.first().map_or(0, |method| side(&mean_cells(results, *method)));
    let axis = TOP + ROW * methods.len() as f64;
    let masks_top = axis + 80.0;
    let height = masks_top + CELL * grid as f64 + 40.0;
    let mut svg = String::new();
    writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"13\" fill=\"{INK}\" stroke=\"none\">"
    )?;
    writeln!(
        svg,
        "<text x=\"0\" y=\"20\" font-weight=\"bold\">Accuracy after fine-tuning, above no mask (percentage points)</text>"
    )?;
    let place = Place { reach };
    for tick in [-reach, -reach / 2.0, 0.0, reach / 2.0, reach] {
        let x = place.x(tick);
        writeln!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{axis}\" stroke=\"{INK}\" stroke-opacity=\"0.4\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{tick:+}</text>",
            axis + 18.0
        )?;
    }
    for (row, method) in methods.iter().enumerate() {
        gain_row(&mut svg, results, *method, (TOP + ROW * (row as f64 + 0.5), &place))?;
    }
    writeln!(
        svg,
        "<text x=\"0\" y=\"{:.1}\" font-weight=\"bold\">Mean masks at the end of pre-training: white lets all light \
         through</text>",
        masks_top - 14.0
    )?;
    for (column, method) in masked.iter().enumerate() {
        heat_map(&mut svg, results, *method, (column as f64 * WIDTH / masked.len() as f64, masks_top))?;
    }
    svg += "</svg>\n";
    Ok(svg)
}

/// Where a gain in percentage points is on the axis.
struct Place {
    reach: f64,
}

impl Place {
    fn x(&self, points: f64) -> f64 {
        LABELS + (WIDTH - LABELS - RIGHT) * (points / self.reach + 1.0) / 2.0
    }
}

/// One method: its interval, its mean, and each seed.
fn gain_row(svg: &mut String, results: &Results, method: Method, (y, place): (f64, &Place)) -> fmt::Result {
    writeln!(svg, "<text x=\"0\" y=\"{:.1}\">{method}</text>", y + 4.0)?;
    let Some(gain) = results.gain(method, Method::NoMask, accuracy) else { return Ok(()) };
    let half_width = gain.half_width.unwrap_or(0.0);
    let [low, middle, high] =
        [gain.mean - half_width, gain.mean, gain.mean + half_width].map(|gain| place.x(gain * 100.0));
    writeln!(
        svg,
        "<line x1=\"{low:.1}\" y1=\"{y:.1}\" x2=\"{high:.1}\" y2=\"{y:.1}\" stroke=\"{MARK}\" stroke-width=\"3\"/>\
         <circle cx=\"{middle:.1}\" cy=\"{y:.1}\" r=\"5\" fill=\"{MARK}\"/>"
    )?;
    for (run, other) in results.of(method).zip(results.of(Method::NoMask)) {
        let x = place.x((accuracy(run) - accuracy(other)) * 100.0);
        writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{:.1}\" r=\"2\"/>", y + 9.0)?;
    }
    Ok(())
}

/// The mean mask of a method over images and seeds.
fn heat_map(svg: &mut String, results: &Results, method: Method, (left, top): (f64, f64)) -> fmt::Result {
    let cells = mean_cells(results, method);
    let side = side(&cells);
    for (number, cell) in cells.iter().enumerate() {
        let (row, column) = (number / side, number % side);
        let grey = (cell.clamp(0.0, 1.0) * 255.0).round() as u8;
        writeln!(
            svg,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{CELL}\" height=\"{CELL}\" fill=\"rgb({grey},{grey},{grey})\"/>",
            left + CELL * column as f64,
            top + CELL * row as f64
        )?;
    }
    let below = top + CELL * side as f64 + 16.0;
    writeln!(svg, "<text x=\"{left:.1}\" y=\"{below:.1}\" font-size=\"10\">{method}</text>")
}

fn mean_cells(results: &Results, method: Method) -> Vec<f64> {
    let masks: Vec<&[f64]> = results
        .of(method)
        .filter_map(|run| run.outcome.masks.as_ref())
        .map(|masks| masks.cells.as_slice())
        .collect();
    let cells = masks.first().map_or(0, |cells| cells.len());
    (0..cells).map(|cell| mean(&masks.iter().map(|mask| mask[cell]).collect::<Vec<_>>())).collect()
}

fn side(cells: &[f64]) -> usize {
    cells.len().isqrt().max(1)
}

/// The largest gain or loss that has to be shown, in percentage points, on a whole half.
fn scale(results: &Results) -> f64 {
    let mut most: f64 = 0.5;
    for method in Method::ALL {
        let Some(gain) = results.gain(method, Method::NoMask, accuracy) else { continue };
        most = most.max((gain.mean.abs() + gain.half_width.unwrap_or(0.0)) * 100.0);
        for (run, other) in results.of(method).zip(results.of(Method::NoMask)) {
            most = most.max((accuracy(run) - accuracy(other)).abs() * 100.0);
        }
    }
    (most * 2.0).ceil() / 2.0
}

fn accuracy(run: &Run) -> f64 {
    run.outcome.fine_tuned.accuracy
}

fn macro_f1(run: &Run) -> f64 {
    run.outcome.fine_tuned.macro_f1
}

fn mean(numbers: &[f64]) -> f64 {
    numbers.iter().sum::<f64>() / numbers.len().max(1) as f64
}

fn percent(interval: Option<Interval>) -> String {
    number(interval.map(|interval| interval.times(100.0)))
}

fn number(interval: Option<Interval>) -> String {
    interval.map_or_else(|| "–".to_owned(), |interval| format!("{interval:.2}"))
}
