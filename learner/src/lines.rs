//! JSON lines, read one at a time; what is wrong names the file and the line.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// Longest line, in bytes: a bound against files that are none of lines.
const MOST_BYTES: u64 = 1 << 28;

/// Calls `each` with every line that is not blank, parsed. What it finds wrong is an error of that line.
pub(crate) fn read<T: DeserializeOwned>(
    path: &Path,
    mut each: impl FnMut(T) -> std::result::Result<(), String>,
) -> Result<()> {
    let mut reader = BufReader::new(File::open(path).map_err(Error::io("open", path))?);
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        let mut limited = std::io::Read::take(&mut reader, MOST_BYTES);
        let count = limited.read_until(b'\n', &mut bytes).map_err(Error::io("read", path))?;
        if count == 0 {
            break;
        }
        let wrong = |problem: String| Error::Line { path: path.to_owned(), line, problem };
        if count as u64 == MOST_BYTES {
            return Err(wrong(format!("has {MOST_BYTES} bytes or more")));
        }
        if bytes.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let parsed = serde_json::from_slice(&bytes).map_err(|error| wrong(without_place(&error)))?;
        each(parsed).map_err(wrong)?;
    }
    Ok(())
}

/// The message without serde's own line, which is always 1.
fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let end = text.rfind(" at line ").unwrap_or(text.len());
    format!("{} (column {})", &text[..end], error.column())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn read_all(content: &str) -> Result<Vec<BTreeMap<String, u32>>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lines.jsonl");
        std::fs::write(&path, content).unwrap();
        let mut found = Vec::new();
        read(&path, |line: BTreeMap<String, u32>| {
            let wanted = line.contains_key("a");
            found.push(line);
            if wanted { Ok(()) } else { Err("has no a".to_owned()) }
        })?;
        Ok(found)
    }

    #[test]
    fn lines_are_parsed_and_blank_ones_passed_over() {
        let found = read_all("{\"a\":1}\n\n  \n{\"a\":2}").unwrap();
        assert_eq!(found.iter().map(|line| line["a"]).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn what_is_wrong_names_the_file_and_the_line() {
        let message = |content: &str| read_all(content).unwrap_err().to_string();
        assert!(message("{\"a\":1}\n\n{\"a\":").contains("lines.jsonl:3: EOF while parsing"));
        assert!(message("{\"a\":-1}").contains("lines.jsonl:1: invalid value: integer `-1`"));
        assert!(message("{\"a\":1}\n{\"b\":1}").ends_with("lines.jsonl:2: has no a"));
        assert!(message("{\"a\":1}\n\u{0}\u{1}").contains("lines.jsonl:2: "));
        assert!(read(Path::new("/no/such/file"), |_: u32| Ok(())).is_err());
    }
}
