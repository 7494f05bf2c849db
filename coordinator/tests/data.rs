//! Data sets of every kind say the same prompts.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coordinator::data::{DataConfig, DataSet, first_rows};
use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use types::{PromptContent, PromptId};

/// GSM8K's own columns.
const QUESTIONS: [&str; 2] = ["2 and 3, \"added\"?", "Two\nlines: 4 - 1?"];
const ANSWERS: [&str; 2] = ["2 + 3 = 5\n#### 5", "#### 3"];

fn config(path: PathBuf) -> DataConfig {
    let columns = [("prompt".to_owned(), "question".to_owned())].into();
    DataConfig { path, shuffle: false, columns, ..DataConfig::default() }
}

fn prompts(config: &DataConfig) -> Vec<(PromptContent, serde_json::Value)> {
    let data = DataSet::read(config, false, 0).unwrap();
    let prompt = |ordinal| data.prompt(PromptId { epoch: 0, ordinal });
    let prompts = (0..).map_while(prompt);
    prompts.map(|p| (p.clone().into_content(), serde_json::from_str(p.fields()).unwrap())).collect()
}

fn write_parquet(path: &Path, compression: Compression) {
    let message = "message rows { required binary question (UTF8); required binary answer (UTF8); \
                   optional double difficulty; }";
    let schema = Arc::new(parse_message_type(message).unwrap());
    let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
    let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema, properties).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for texts in [QUESTIONS, ANSWERS] {
        let texts = texts.map(|text| ByteArray::from(text.as_bytes().to_vec()));
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
        column.close().unwrap();
    }
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<DoubleType>().write_batch(&[0.5], Some(&[1, 0]), None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn gsm8k_reads_the_same_as_lines_csv_and_parquet() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let mut lines = String::new();
    let mut csv = csv::Writer::from_path(path("rows.csv")).unwrap();
    let mut tsv = csv::WriterBuilder::new().delimiter(b'\t').from_path(path("rows.tsv")).unwrap();
    for writer in [&mut csv, &mut tsv] {
        writer.write_record(["question", "answer"]).unwrap();
    }
    for (question, answer) in QUESTIONS.iter().zip(ANSWERS) {
        lines += &format!("{}\n", serde_json::json!({"question": question, "answer": answer}));
        for writer in [&mut csv, &mut tsv] {
            writer.write_record([question, &answer]).unwrap();
        }
    }
    std::fs::write(path("rows.jsonl"), lines).unwrap();
    drop((csv, tsv));
    write_parquet(&path("rows.parquet"), Compression::SNAPPY);
    for name in ["rows.jsonl", "rows.csv", "rows.tsv", "rows.parquet"] {
        let prompts = prompts(&config(path(name)));
        assert_eq!(prompts.len(), 2, "{name}");
        for (number, (content, fields)) in prompts.iter().enumerate() {
            assert_eq!(content, &PromptContent::Text(QUESTIONS[number].to_owned()), "{name}");
            assert_eq!(fields["answer"], ANSWERS[number], "{name}");
            assert_eq!(fields["question"], serde_json::Value::Null, "{name}: it has another name now");
        }
    }
    let rows = first_rows(config(path("rows.parquet")).sources()[0], 1).unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0]["difficulty"], 0.5);
}

#[test]
fn what_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("rows.parquet"), "{\"prompt\": \"x\"}\n").unwrap();
    std::fs::write(path("rows.csv"), "prompt,label\nx,1,2\n").unwrap();
    std::fs::write(path("other.csv"), "problem,answer\nx,1\n").unwrap();
    std::fs::write(
        path("chat.csv"),
        "messages\n\"[{\"\"role\"\": \"\"user\"\", \"\"content\"\": \"\"hi\"\"}]\"\n",
    )
    .unwrap();
    let error = |config: &DataConfig| DataSet::read(config, false, 0).unwrap_err().to_string();
    let plain = |name| DataConfig { path: path(name), ..DataConfig::default() };
    let said = error(&plain("rows.parquet"));
    assert!(said.contains("rows.parquet as a table"), "{said}");
    let said = error(&plain("rows.csv"));
    assert!(said.contains("rows.csv as a table") && said.contains("line: 2"), "{said}");
    let said = error(&config(path("other.csv")));
    assert!(
        said.contains("other.csv:2: has no question") && said.contains("it has answer, problem"),
        "{said}"
    );
    assert!(matches!(&prompts(&plain("chat.csv"))[0].0, PromptContent::Messages(_)));
}
