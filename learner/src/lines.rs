//! JSON lines, read one at a time; what is wrong names the file and the line.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::disk::FileError;
use crate::error::{Error, Result};

/// No line has as many bytes: a bound against files that do not consist of lines.
const LINE_BYTES_LIMIT: u64 = 1 << 28;

/// Calls `each` with every line that is not blank, parsed. What it finds wrong is an error of that line.
///
/// # Errors
/// A file that cannot be opened or read, a line that is too long or no JSON of this type, and what `each`
/// says.
pub(crate) fn read<T: DeserializeOwned, E: std::error::Error>(
    path: &Path,
    mut each: impl FnMut(T) -> std::result::Result<(), E>,
) -> Result<()> {
    let mut reader = BufReader::new(File::open(path).map_err(FileError::on("open", path))?);
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        let mut limited = std::io::Read::take(&mut reader, LINE_BYTES_LIMIT);
        let count = limited.read_until(b'\n', &mut bytes).map_err(FileError::on("read", path))?;
        if count == 0 {
            break;
        }
        if count as u64 == LINE_BYTES_LIMIT {
            return Err(Error::line(path, line, format!("has {LINE_BYTES_LIMIT} bytes or more")));
        }
        if bytes.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let parsed =
            serde_json::from_slice(&bytes).map_err(|error| Error::line(path, line, without_place(&error)))?;
        each(parsed).map_err(|problem| Error::line(path, line, problem))?;
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

    #[derive(Debug, thiserror::Error)]
    #[error("has no a")]
    struct NoA;

    fn read_all(content: &str) -> Result<Vec<BTreeMap<String, u32>>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lines.jsonl");
        std::fs::write(&path, content).unwrap();
        let mut found = Vec::new();
        read(&path, |line: BTreeMap<String, u32>| {
            let wanted = line.contains_key("a");
            found.push(line);
            if wanted { Ok(()) } else { Err(NoA) }
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
        assert!(read(Path::new("/no/such/file"), |_: u32| Ok::<(), NoA>(())).is_err());
    }
}
