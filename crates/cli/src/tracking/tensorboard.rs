//! TensorBoard's event files: records in the framing of TFRecord that hold `Event` messages
//! (tensorflow/core/util/event.proto, tensorboard/compat/proto/summary.proto), of which these few fields are
//! all that curves and a text need.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// The polynomial of CRC-32C (Castagnoli), reflected.
const CASTAGNOLI: u32 = 0x82F6_3B78;
/// What TFRecord adds to a rotated checksum, so that one over checksums is no constant.
const MASK_DELTA: u32 = 0xA282_EAD8;
/// The version of the format that readers know.
const FILE_VERSION: &str = "brain.Event:2";
/// `SessionLog.START`: what came before at this step and later holds no more.
const SESSION_START: u64 = 1;
/// `DT_STRING`.
const STRING_TYPE: u64 = 7;

/// An event file that is written.
#[derive(Debug)]
pub(super) struct EventFile {
    file: BufWriter<File>,
    /// The last step that was written.
    last: Option<u64>,
}

/// One step's figures.
#[derive(Debug)]
pub(super) struct Scalars<'a> {
    pub(super) step: u64,
    /// Seconds since 1970.
    pub(super) wall_time: f64,
    pub(super) values: &'a [(String, f64)],
}

impl EventFile {
    /// A new file in a folder; TensorBoard reads all of a folder's files as one run, of which those before
    /// have come to the step `last`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn create(folder: &Path, last: Option<u64>, wall_time: f64) -> std::io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let path = path_of(folder, &service::unique_name("sluice"), wall_time);
        let mut file = Self { file: BufWriter::new(File::create(path)?), last };
        let mut event = Message::of_event(wall_time, 0);
        event.text(3, FILE_VERSION);
        file.record(&event)?;
        Ok(file)
    }

    /// Figures of a step. A step that comes again takes the place of the first, and of those after it.
    ///
    /// # Errors
    /// When there is no room.
    pub(super) fn scalars(&mut self, scalars: &Scalars<'_>) -> std::io::Result<()> {
        let Scalars { step, wall_time, values } = scalars;
        if self.last.is_some_and(|last| *step <= last) {
            let mut log = Message::default();
            log.number(1, SESSION_START);
            let mut event = Message::of_event(*wall_time, *step);
            event.message(7, &log);
            self.record(&event)?;
        }
        self.last = Some(*step);
        let mut summary = Message::default();
        for (name, value) in *values {
            let mut scalar = Message::default();
            scalar.text(1, name);
            // The format has 32 bits.
            scalar.float(2, *value as f32);
            summary.message(1, &scalar);
        }
        let mut event = Message::of_event(*wall_time, *step);
        event.message(5, &summary);
        self.record(&event)
    }

    /// A text, which TensorBoard shows as Markdown.
    ///
    /// # Errors
    /// When there is no room.
    pub(super) fn markdown(&mut self, name: &str, text: &str, wall_time: f64) -> std::io::Result<()> {
        let (mut plugin, mut metadata, mut tensor) =
            (Message::default(), Message::default(), Message::default());
        plugin.text(1, "text");
        metadata.message(1, &plugin);
        tensor.number(1, STRING_TYPE);
        // A scalar's shape has no dimension.
        tensor.message(2, &Message::default());
        tensor.text(8, text);
        let (mut value, mut summary) = (Message::default(), Message::default());
        value.text(1, name);
        value.message(9, &metadata);
        value.message(8, &tensor);
        summary.message(1, &value);
        let mut event = Message::of_event(wall_time, 0);
        event.message(5, &summary);
        self.record(&event)
    }

    /// Hands what was written to the system.
    ///
    /// # Errors
    /// When there is no room.
    pub(super) fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }

    fn record(&mut self, event: &Message) -> std::io::Result<()> {
        let length = (event.0.len() as u64).to_le_bytes();
        self.file.write_all(&length)?;
        self.file.write_all(&masked_checksum(&length).to_le_bytes())?;
        self.file.write_all(&event.0)?;
        self.file.write_all(&masked_checksum(&event.0).to_le_bytes())
    }
}

/// Readers go by `tfevents` in the name, and read the files of a folder in the order of their names.
fn path_of(folder: &Path, unique: &str, wall_time: f64) -> PathBuf {
    folder.join(format!("events.out.tfevents.{:010}.{unique}", wall_time as u64))
}

/// A message of protocol buffers.
#[derive(Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    fn of_event(wall_time: f64, step: u64) -> Self {
        let mut event = Self::default();
        event.key(1, 1);
        event.0.extend(wall_time.to_le_bytes());
        event.number(2, step);
        event
    }

    fn key(&mut self, field: u64, wire_type: u64) {
        self.varint(field << 3 | wire_type);
    }

    fn number(&mut self, field: u64, value: u64) {
        self.key(field, 0);
        self.varint(value);
    }

    fn float(&mut self, field: u64, value: f32) {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
    }

    fn text(&mut self, field: u64, text: &str) {
        self.bytes(field, text.as_bytes());
    }

    fn message(&mut self, field: u64, message: &Self) {
        self.bytes(field, &message.0);
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.key(field, 2);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7F) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

fn masked_checksum(bytes: &[u8]) -> u32 {
    checksum(bytes).rotate_right(15).wrapping_add(MASK_DELTA)
}

/// CRC-32C, bit by bit: a step is a few kilobytes.
fn checksum(bytes: &[u8]) -> u32 {
    let mut checksum = !0u32;
    for byte in bytes {
        checksum ^= u32::from(*byte);
        for _ in 0..8 {
            let low = checksum & 1;
            checksum = (checksum >> 1) ^ (CASTAGNOLI * low);
        }
    }
    !checksum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, appendix B.4, and the check value of the catalogue of CRCs.
    #[test]
    fn the_checksum_is_crc_32c() {
        assert_eq!(checksum(b"123456789"), 0xE306_9283);
        assert_eq!(checksum(&[0; 32]), 0x8A91_36AA);
        assert_eq!(checksum(&[0xFF; 32]), 0x62A8_AB43);
    }

    /// Bytes that tensorboard's own EventFileWriter writes for its first record at the time 1.0.
    #[test]
    fn the_first_record_says_the_version() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = EventFile::create(folder.path(), None, 1.0).unwrap();
        file.flush().unwrap();
        let path = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
        assert!(path.to_string_lossy().contains("events.out.tfevents.0000000001."), "{path:?}");
        let bytes = std::fs::read(path).unwrap();
        assert_eq!(bytes[..8], 26u64.to_le_bytes());
        assert_eq!(bytes[12..21], [0x09, 0, 0, 0, 0, 0, 0, 0xF0, 0x3F]);
        assert_eq!(&bytes[bytes.len() - 17..bytes.len() - 4], b"brain.Event:2");
        assert_eq!(bytes.len(), 12 + 26 + 4);
    }
}
