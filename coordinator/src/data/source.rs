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

/// Keys whose cells in a CSV file are JSON: what they hold is no text.
const STRUCTURED_KEYS: [&str; 6] = ["messages", "tokens", "problem", "cases", "test_list", "test_imports"];

/// The data set of prompts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// A file of prompts: JSON Lines (plain or gzipped), `.csv` or `.tsv` with a line of names, or
    /// `.parquet`. A row has `prompt` (text), `messages` (chat) or `tokens` (ids), and whatever the
    /// scorers read (`tests`, `cases`, `label`, ...).
    #[schemars(extend("x-kind" = "file"))]
    pub path: PathBuf,
    /// Take the prompts of each epoch in a new random order.
    pub shuffle: bool,
    /// Prompts that are passed over at the beginning, as if a run before had used them.
    pub skip_prompts: u64,
    /// Other names in the file, by the names that are read: `{prompt = "question", label = "answer"}`.
    pub columns: BTreeMap<String, String>,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self { path: PathBuf::new(), shuffle: true, skip_prompts: 0, columns: BTreeMap::new() }
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
pub(super) fn rows(config: &DataConfig) -> Result<Rows, Error> {
    let rows = match Format::of(&config.path) {
        Format::JsonLines => json_lines(&config.path)?,
        Format::Separated(delimiter) => separated(&config.path, delimiter)?,
        Format::Parquet => parquet_rows(&config.path)?,
    };
    if config.columns.is_empty() {
        return Ok(rows);
    }
    let columns = config.columns.clone();
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
