//! The data set of prompts: read once, checked row by row, served in a seeded order.

mod error;
mod source;

use std::sync::{Arc, Mutex};

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value};
use types::{MAX_FIELDS_BYTES, Prompt, PromptContent, PromptId};

pub use error::{Error, RowProblem};
pub use source::{DataConfig, SetConfig, Source};

use source::{Row, names, rows};

/// Prompts by their place in an epoch's order.
#[derive(Debug)]
pub struct DataSet {
    lines: Vec<Line>,
    /// The data sets that it is made of, one behind the other.
    parts: Vec<Part>,
    hash: String,
    shuffle: bool,
    seed: u64,
    /// Prompts before the first one that is served.
    skip: u64,
    /// Prompts that are asked and not learnt from.
    held_out: Option<Box<Self>>,
    /// Of each part, the orders of the last even and the last odd epoch that were asked for: where one epoch
    /// ends and the next begins both are. An epoch's order is a function of the seed and its number.
    orders: Mutex<Vec<[Option<EpochOrder>; 2]>>,
}

/// An epoch, and the places of its prompts in the file.
type EpochOrder = (u32, Arc<[u32]>);

/// A data set among others.
#[derive(Debug, Clone, Copy)]
struct Part {
    /// The ordinal of its first prompt.
    first: u64,
    prompts: u64,
}

#[derive(Debug)]
struct Line {
    content: PromptContent,
    fields: Arc<str>,
}

impl DataSet {
    /// Reads a data set; `shuffle` says whether epochs have orders of their own.
    ///
    /// # Errors
    /// Names the file and, for a row that cannot be used, its place.
    pub fn read(config: &DataConfig, shuffle: bool, seed: u64) -> Result<Self, Error> {
        let (mut lines, mut hasher) = (Vec::new(), blake3::Hasher::new());
        let mut parts = Vec::new();
        for source in config.sources() {
            let first = lines.len();
            if let Some(name) = source.name {
                hasher.update(name.as_bytes()).update(&[0]);
            }
            for row in rows(source)? {
                let row = row?;
                hasher.update(row.text.as_bytes());
                lines.push(Line::of(&row)?);
            }
            let count = lines.len() - first;
            if count == 0 || u32::try_from(lines.len()).is_err() {
                return Err(Error::Count { path: source.path.to_owned(), count });
            }
            parts.push(Part { first: first as u64, prompts: count as u64 });
        }
        let skip = config.skip_prompts;
        if skip > 0 {
            // Ordinals mean other prompts then.
            hasher.update(&skip.to_le_bytes());
        }
        let hash = hasher.finalize().to_hex().to_string();
        let orders = Mutex::new(vec![[None, None]; parts.len()]);
        Ok(Self { lines, parts, hash, shuffle, seed, skip, held_out: None, orders })
    }

    /// The same with prompts that are held out, in the order of their file.
    ///
    /// # Errors
    /// As for the others.
    pub(crate) fn with_held_out(self, config: Option<&DataConfig>) -> Result<Self, Error> {
        let held_out = config.map(|config| Self::read(config, false, 0)).transpose()?;
        Ok(Self { held_out: held_out.map(Box::new), ..self })
    }

    /// The prompts that are held out.
    pub(crate) fn held_out(&self) -> Option<&Self> {
        self.held_out.as_deref()
    }

    /// Number of prompts.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Never true: a data set has at least one prompt.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Prompts of each of the data sets that it is made of.
    pub(crate) fn part_sizes(&self) -> impl Iterator<Item = u64> {
        self.parts.iter().map(|part| part.prompts)
    }

    /// BLAKE3 of the lines, and of what is skipped.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The prompt at a place of an epoch's order; none beyond the end. Of several data sets each has its own
    /// epochs and its own range of ordinals.
    pub fn prompt(&self, id: PromptId) -> Option<Prompt> {
        if let Some(place) = id.held_out_place() {
            let found = self.held_out()?.prompt(PromptId { epoch: 0, ordinal: place })?;
            return Prompt::new(id, found.content().clone(), Arc::clone(found.fields())).ok();
        }
        let number = self.parts.partition_point(|part| part.first <= id.ordinal).checked_sub(1)?;
        let Part { first, prompts } = self.parts[number];
        if id.ordinal - first >= prompts {
            return None;
        }
        let served = self.skip.checked_add(u64::from(id.epoch) * prompts + id.ordinal - first)?;
        let epoch = u32::try_from(served / prompts).ok()?;
        let place = usize::try_from(served % prompts).ok()?;
        let place = if self.shuffle { *self.epoch_order(number, epoch).get(place)? as usize } else { place };
        let line = self.lines.get(usize::try_from(first).ok()? + place)?;
        Prompt::new(id, line.content.clone(), Arc::clone(&line.fields)).ok()
    }

    fn epoch_order(&self, part: usize, epoch: u32) -> Arc<[u32]> {
        let mut cached = self.orders.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let place = &mut cached[part][(epoch % 2) as usize];
        if let Some((known, order)) = place
            && *known == epoch
        {
            return Arc::clone(order);
        }
        let count = usize::try_from(self.parts[part].prompts).unwrap_or(usize::MAX);
        let mut order: Vec<u32> = (0u32..).take(count).collect();
        // Data sets of one size have orders of their own.
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed.wrapping_add((part as u64) << 32));
        rng.set_stream(u64::from(epoch));
        order.shuffle(&mut rng);
        let order: Arc<[u32]> = order.into();
        *place = Some((epoch, Arc::clone(&order)));
        order
    }
}

impl Line {
    fn of(row: &Row) -> Result<Self, Error> {
        let text = row.text.trim();
        let content = content(&row.fields).map_err(|problem| problem.at(&row.place))?;
        if text.len() > MAX_FIELDS_BYTES {
            return Err(RowProblem::TooLarge { bytes: text.len() }.at(&row.place));
        }
        let fields: Arc<str> = text.into();
        let prompt = Prompt::new(PromptId { epoch: 0, ordinal: 0 }, content, Arc::clone(&fields));
        let prompt = prompt.map_err(|invalid| RowProblem::Invalid(invalid).at(&row.place))?;
        Ok(Self { content: prompt.into_content(), fields })
    }
}

fn content(fields: &Map<String, Value>) -> Result<PromptContent, RowProblem> {
    match (fields.get("prompt"), fields.get("messages"), fields.get("tokens")) {
        (Some(Value::String(text)), None, None) => Ok(PromptContent::Text(text.clone())),
        (None, Some(Value::Array(messages)), None) | (Some(Value::Array(messages)), None, None)
            if messages.is_empty() =>
        {
            Err(RowProblem::NoMessages)
        }
        (None, Some(messages @ Value::Array(_)), None) | (Some(messages @ Value::Array(_)), None, None) => {
            Ok(PromptContent::Messages(messages.to_string()))
        }
        (None, None, Some(Value::Array(ids))) => {
            let ids: Option<Vec<u32>> = ids.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect();
            Ok(PromptContent::Tokens(ids.ok_or(RowProblem::NoTokenIds)?))
        }
        _ => Err(RowProblem::NoPrompt { has: names(fields) }),
    }
}

/// A row that was read: a prompt, and the fields that the scorers will see.
#[derive(Debug, Clone)]
pub struct PromptRow {
    /// What the policy is given.
    pub content: PromptContent,
    /// The whole row, under the names that are read.
    pub fields: Map<String, Value>,
}

/// The rows of all data sets, checked.
///
/// # Errors
/// Names the file; each item, for a row that cannot be used, its place.
pub fn prompt_rows(
    config: &DataConfig,
) -> Result<impl Iterator<Item = Result<PromptRow, Error>> + use<>, Error> {
    let files: Vec<_> = config.sources().into_iter().map(rows).collect::<Result<_, _>>()?;
    Ok(files.into_iter().flatten().map(|row| {
        let row = row?;
        let content = Line::of(&row)?.content;
        Ok(PromptRow { content, fields: row.fields })
    }))
}

/// The first rows of a file of prompts, checked like all others, as the scorers will see them.
///
/// # Errors
/// Names the file and, for a row that cannot be used, its place.
pub fn first_rows(source: Source<'_>, most: usize) -> Result<Vec<Map<String, Value>>, Error> {
    let mut first = Vec::new();
    for row in rows(source)?.take(most) {
        let row = row?;
        Line::of(&row)?;
        first.push(row.fields);
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::Write;
    use std::path::Path;

    use super::*;

    fn at(path: &Path) -> DataConfig {
        DataConfig { path: path.to_owned(), ..DataConfig::default() }
    }

    fn read(text: &str) -> Result<DataSet, Error> {
        let mut file = tempfile::Builder::new().prefix("prompts").suffix(".jsonl").tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        DataSet::read(&at(file.path()), true, 7)
    }

    fn texts(data: &DataSet, epoch: u32) -> Vec<String> {
        let prompt = |ordinal| data.prompt(PromptId { epoch, ordinal });
        let text = |prompt: Prompt| match prompt.into_content() {
            PromptContent::Text(text) => text,
            other => panic!("{other:?}"),
        };
        (0..).map_while(prompt).map(text).collect()
    }

    #[test]
    fn every_epoch_serves_every_prompt_once_in_an_order_of_its_own() {
        let text: String = (0..40).map(|n| format!("{{\"prompt\": \"p{n}\", \"label\": {n}}}\n")).collect();
        let data = read(&text).unwrap();
        let (first, second) = (texts(&data, 0), texts(&data, 1));
        assert_eq!(first.len(), 40);
        assert_eq!(first.iter().collect::<BTreeSet<_>>(), second.iter().collect::<BTreeSet<_>>());
        assert_ne!(first, second);
        assert_eq!(first, texts(&read(&text).unwrap(), 0), "the order is a function of the seed");
        let prompt = data.prompt(PromptId { epoch: 0, ordinal: 0 }).unwrap();
        assert!(prompt.fields().contains("label"));
    }

    #[test]
    fn skipped_prompts_are_those_that_a_run_before_was_served() {
        let text: String = (0..5).map(|n| format!("{{\"prompt\": \"p{n}\"}}\n")).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &text).unwrap();
        let from =
            |skip_prompts| DataSet::read(&DataConfig { skip_prompts, ..at(file.path()) }, true, 7).unwrap();
        let (whole, rest) = (from(0), from(3));
        let served = |data: &DataSet| [texts(data, 0), texts(data, 1), texts(data, 2)].concat();
        assert_eq!(served(&whole)[3..], served(&rest)[..12]);
        assert_ne!(whole.hash(), rest.hash(), "a journal of one cannot be gone on with as the other");
    }

    #[test]
    fn several_data_sets_lie_one_behind_the_other_each_with_epochs_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let set = |name: &str, count: u32| {
            let path = folder.path().join(format!("{name}.jsonl"));
            let lines: String = (0..count).map(|n| format!("{{\"prompt\": \"{name}{n}\"}}\n")).collect();
            std::fs::write(&path, lines).unwrap();
            SetConfig { name: name.to_owned(), path, share: 1.0, ..SetConfig::default() }
        };
        let sets = vec![set("a", 30), set("b", 30), set("c", 5)];
        let config = DataConfig { sets, ..DataConfig::default() };
        let data = DataSet::read(&config, true, 7).unwrap();
        assert_eq!(data.part_sizes().collect::<Vec<_>>(), [30, 30, 5]);
        let (first, second) = (texts(&data, 0), texts(&data, 1));
        assert_eq!(first.len(), 65);
        for (from, to, name) in [(0, 30, "a"), (30, 60, "b"), (60, 65, "c")] {
            assert!(first[from..to].iter().all(|text| text.starts_with(name)), "{first:?}");
            let [one, other] = [&first, &second].map(|epoch| epoch[from..to].iter().collect::<BTreeSet<_>>());
            assert_eq!((one.len(), &one), (to - from, &other));
        }
        assert_ne!(first[..30], second[..30]);
        let [a, b] = [&first[..30], &first[30..60]].map(|texts| texts.iter().map(|text| &text[1..]));
        assert!(a.ne(b), "each has an order of its own");
        let renamed = vec![SetConfig { name: "z".into(), ..config.sets[0].clone() }];
        let renamed = DataSet::read(&DataConfig { sets: renamed, ..DataConfig::default() }, true, 7).unwrap();
        assert_ne!(renamed.hash(), data.hash());
    }

    #[test]
    fn a_broken_line_is_named() {
        for (text, expected) in [
            ("{\"prompt\": \"x\"}\n{\"prompt\": \n", ":2: is not a JSON object"),
            ("{\"prompt\": \"x\"}\n\n{\"question\": 3}\n", ":3: must have exactly one of"),
            ("{\"question\": \"x\", \"answer\": 3}\n", "it has answer, question; other names are mapped"),
            ("{\"tokens\": [1, -2]}\n", ":1: tokens must be"),
            ("{\"prompt\": \"\"}\n", ":1: is empty"),
            ("{\"messages\": []}\n", ":1: has a chat without a message"),
            ("\n\n", "0 prompts"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error} should contain {expected}");
        }
        let missing =
            DataSet::read(&at(Path::new("/nowhere/prompts.jsonl")), true, 0).unwrap_err().to_string();
        assert!(missing.contains("/nowhere/prompts.jsonl"), "{missing}");
    }

    #[test]
    fn chats_tokens_and_gzip_are_read() {
        let file = tempfile::Builder::new().suffix(".jsonl.gz").tempfile().unwrap();
        let mut encoder = flate2::write::GzEncoder::new(file.reopen().unwrap(), flate2::Compression::fast());
        encoder
            .write_all(b"{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}\n{\"tokens\": [3, 4]}")
            .unwrap();
        encoder.finish().unwrap();
        let data = DataSet::read(&at(file.path()), false, 0).unwrap();
        let content = |ordinal| data.prompt(PromptId { epoch: 5, ordinal }).unwrap().into_content();
        let PromptContent::Messages(messages) = content(0) else { panic!("not a chat: {:?}", content(0)) };
        // The order of keys is the library's affair.
        let messages: Value = serde_json::from_str(&messages).unwrap();
        assert_eq!(messages, serde_json::json!([{"role": "user", "content": "hi"}]));
        assert_eq!(content(1), PromptContent::Tokens(vec![3, 4]));
    }
}
