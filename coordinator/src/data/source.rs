//! Where prompts come from, and the rows of such a file: JSON Lines, CSV or Parquet, each row a JSON object.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use parquet::file::reader::SerializedFileReader;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use service::jsonl;

use super::error::{Error, RowProblem};

/// Smallest and largest share of a set: what is between them can be counted exactly.
const MIN_SHARE: f64 = 1e-3;
const MAX_SHARE: f64 = 1e6;

/// Keys whose cells in a CSV file are JSON: what they hold is no text.
const STRUCTURED_KEYS: [&str; 6] = ["messages", "tokens", "problem", "cases", "test_list", "test_imports"];

/// The data set of prompts, or several.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// A file of prompts: JSON Lines (plain or gzipped), `.csv` or `.tsv` with a line of names, or
    /// `.parquet`. A row has `prompt` (text), `messages` (chat) or `tokens` (ids), and whatever the
    /// scorers read (`tests`, `cases`, `label`, ...).
    #[schemars(extend("x-kind" = "file"))]
    pub path: PathBuf,
    /// Take the prompts of each epoch in a new random order.
    pub shuffle: bool,
    /// Prompts that are passed over at the beginning, as if a run before had used them. Of one data set only.
    pub skip_prompts: u64,
    /// Other names in the file, by the names that are read: `{prompt = "question", label = "answer"}`.
    pub columns: BTreeMap<String, String>,
    /// Several data sets instead of `path`, each with its share of the prompts.
    pub sets: Vec<SetConfig>,
}

/// One of several data sets.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SetConfig {
    /// Its name in steps and metrics.
    pub name: String,
    /// Its file, as `coordinator.data.path`.
    #[schemars(extend("x-kind" = "file"))]
    pub path: PathBuf,
    /// Its part of all prompts that are begun, in relation to the other sets' shares: at every moment it is
    /// off by less than one prompt for each set. A set that is through begins anew, whatever the others do.
    pub share: f64,
    /// Other names in its file, as `coordinator.data.columns`.
    pub columns: BTreeMap<String, String>,
}

/// A file of prompts and the names in it.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The set's name; none of the only one.
    pub name: Option<&'a str>,
    /// The key that names the file, such as `path` or `sets[0].path`.
    pub(super) index: Option<usize>,
    /// The file.
    pub path: &'a Path,
    pub(super) columns: &'a BTreeMap<String, String>,
}

impl Source<'_> {
    /// The key of the configuration that names the file.
    pub fn key(&self) -> String {
        self.index.map_or_else(|| "path".to_owned(), |index| format!("sets[{index}].path"))
    }
}

impl DataConfig {
    /// The files of prompts.
    pub fn sources(&self) -> Vec<Source<'_>> {
        if self.sets.is_empty() {
            return vec![Source { name: None, index: None, path: &self.path, columns: &self.columns }];
        }
        let mut sources = Vec::with_capacity(self.sets.len());
        for (index, SetConfig { name, path, columns, .. }) in self.sets.iter().enumerate() {
            sources.push(Source { name: Some(name), index: Some(index), path, columns });
        }
        sources
    }

    /// What is wrong with it.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.sets.is_empty() {
            if self.path.as_os_str().is_empty() {
                problems.push("data.path is missing: name a file of prompts".to_owned());
            }
            return problems;
        }
        if !self.path.as_os_str().is_empty() || !self.columns.is_empty() {
            problems.push(
                "data.path and data.columns are of one data set: move them into a data.sets".to_owned(),
            );
        }
        if self.skip_prompts > 0 {
            problems.push("data.skip_prompts is of one data set, and there are data.sets".to_owned());
        }
        for (index, SetConfig { name, path, share, .. }) in self.sets.iter().enumerate() {
            if path.as_os_str().is_empty() {
                problems.push(format!("data.sets[{index}].path is missing: name a file of prompts"));
            }
            if name.is_empty() || self.sets[..index].iter().any(|other| other.name == *name) {
                problems
                    .push(format!("data.sets[{index}].name is {name:?}: each set needs a name of its own"));
            }
            if !(MIN_SHARE..=MAX_SHARE).contains(share) {
                problems.push(format!(
                    "data.sets[{index}].share is {share}, must be between {MIN_SHARE} and {MAX_SHARE}"
                ));
            }
        }
        problems
    }
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            shuffle: true,
            skip_prompts: 0,
            columns: BTreeMap::new(),
            sets: Vec::new(),
        }
    }
}

/// A row of the file.
#[derive(Debug, Clone)]
pub(super) struct Row {
    /// Where it stands, for errors.
    pub(super) place: String,
    /// What the data set's hash is made of: the line as it stands in the file, or the row as JSON.
    pub(super) text: String,
    pub(super) fields: Map<String, Value>,
}

type Rows = Box<dyn Iterator<Item = Result<Row, Error>>>;

/// The rows of a data set, under the names that are read.
///
/// # Errors
/// When the file cannot be opened, or is not what its name says.
pub(super) fn rows(source: Source<'_>) -> Result<Rows, Error> {
    let rows = match Format::of(source.path) {
        Format::JsonLines => json_lines(source.path)?,
        Format::Separated(delimiter) => separated(source.path, delimiter)?,
        Format::Parquet => parquet_rows(source.path)?,
    };
    if source.columns.is_empty() {
        return Ok(rows);
    }
    let columns = source.columns.clone();
    Ok(Box::new(rows.map(move |row| renamed(row?, &columns))))
}

/// What a file is, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    JsonLines,
    /// With this byte between cells.
    Separated(u8),
    Parquet,
}

impl Format {
    fn of(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        match name.trim_end_matches(".gz").rsplit('.').next() {
            Some("csv") => Self::Separated(b','),
            Some("tsv") => Self::Separated(b'\t'),
            Some("parquet") => Self::Parquet,
            _ => Self::JsonLines,
        }
    }
}

fn json_lines(path: &Path) -> Result<Rows, Error> {
    let lines = jsonl::read(path)?;
    Ok(Box::new(lines.map(|line| {
        let line = line?;
        let place = line.place();
        let fields = serde_json::from_str(line.text());
        let fields = fields.map_err(|error| RowProblem::NoObject(error).at(&place))?;
        Ok(Row { place, text: line.text().to_owned(), fields })
    })))
}

fn separated(path: &Path, delimiter: u8) -> Result<Rows, Error> {
    let table = |error: csv::Error| Error::table(path, error);
    let file = jsonl::open(path).map_err(|error| Error::table(path, error))?;
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(file);
    let names: Vec<String> = reader.headers().map_err(table)?.iter().map(str::to_owned).collect();
    let path = path.to_owned();
    Ok(Box::new(reader.into_records().map(move |record| {
        let record = record.map_err(|error| Error::table(&path, error))?;
        let line = record.position().map_or(0, csv::Position::line);
        let place = format!("{}:{line}", path.display());
        let mut fields = Map::new();
        for (name, cell) in names.iter().zip(&record) {
            fields.insert(name.clone(), cell_value(name, cell));
        }
        Ok(made(place, fields))
    })))
}

/// A cell as a value: text, but for what holds no text.
fn cell_value(name: &str, cell: &str) -> Value {
    let structured = STRUCTURED_KEYS.contains(&name).then(|| serde_json::from_str(cell).ok()).flatten();
    structured.unwrap_or_else(|| Value::String(cell.to_owned()))
}

fn parquet_rows(path: &Path) -> Result<Rows, Error> {
    let file = File::open(path).map_err(|error| Error::table(path, error))?;
    let reader = SerializedFileReader::new(file).map_err(|error| Error::table(path, error))?;
    let path = path.to_owned();
    Ok(Box::new(reader.into_iter().zip(1..).map(move |(row, number)| {
        let place = format!("{}, row {number}", path.display());
        match row.map_err(|error| Error::table(&path, error))?.to_json_value() {
            Value::Object(fields) => Ok(made(place, fields)),
            other => Err(Error::table(&path, format!("row {number} is {other}"))),
        }
    })))
}

/// A row that is no line of JSON.
fn made(place: String, mut fields: Map<String, Value>) -> Row {
    // What a table leaves empty is not there.
    fields.retain(|_, value| !value.is_null());
    Row { place, text: json_line(&fields), fields }
}

/// The row with each value of `columns` under the name that is read.
fn renamed(mut row: Row, columns: &BTreeMap<String, String>) -> Result<Row, Error> {
    let mut taken = Map::new();
    for (name, column) in columns {
        let value = row.fields.get(column).ok_or_else(|| {
            RowProblem::NoColumn { column: column.clone(), has: names(&row.fields) }.at(&row.place)
        })?;
        taken.insert(name.clone(), value.clone());
    }
    row.fields.retain(|column, _| !columns.values().any(|renamed| renamed == column));
    row.fields.extend(taken);
    Ok(Row { text: json_line(&row.fields), ..row })
}

fn json_line(fields: &Map<String, Value>) -> String {
    // In an order of its own: that of the map is the library's affair, and the data set's hash is made of
    // this.
    let sorted: BTreeMap<&String, &Value> = fields.iter().collect();
    // A map of JSON values has a form in JSON.
    serde_json::to_string(&sorted).unwrap_or_default() + "\n"
}

/// The names of a row, for people.
pub(super) fn names(fields: &Map<String, Value>) -> String {
    let mut names: Vec<&str> = fields.keys().map(String::as_str).collect();
    names.sort_unstable();
    names.join(", ")
}
