//! TensorBoard's event files: records in the framing of TFRecord that hold `Event` messages
//! (tensorflow/core/util/event.proto, tensorboard/compat/proto/summary.proto), of which these few fields are
//! all that curves and a text need.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use prost::Message;

/// What TFRecord adds to a rotated checksum, so that one over checksums is no constant.
const MASK_DELTA: u32 = 0xA282_EAD8;
/// The version of the format that readers know.
const FILE_VERSION: &str = "brain.Event:2";
/// `SessionLog.START`: what came before at this step and later holds no more.
const SESSION_START: i32 = 1;
/// `DT_STRING`.
const STRING_TYPE: i32 = 7;

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
        file.record(&Event { wall_time, file_version: Some(FILE_VERSION.to_owned()), ..Event::default() })?;
        Ok(file)
    }

    /// Figures of a step. A step that comes again takes the place of the first, and of those after it.
    ///
    /// # Errors
    /// When there is no room.
    pub(super) fn scalars(&mut self, scalars: &Scalars<'_>) -> std::io::Result<()> {
        let Scalars { step, wall_time, values } = *scalars;
        let event = Event { wall_time, step: i64::try_from(step).unwrap_or(i64::MAX), ..Event::default() };
        if self.last.is_some_and(|last| step <= last) {
            self.record(&Event { session_log: Some(SessionLog { status: SESSION_START }), ..event.clone() })?;
        }
        self.last = Some(step);
        let scalar = values.iter().map(|(name, value)| SummaryValue {
            tag: name.clone(),
            // The format has 32 bits.
            simple_value: Some(*value as f32),
            ..SummaryValue::default()
        });
        self.record(&Event { summary: Some(Summary { value: scalar.collect() }), ..event })
    }

    /// A text, which TensorBoard shows as Markdown.
    ///
    /// # Errors
    /// When there is no room.
    pub(super) fn markdown(&mut self, name: &str, text: &str, wall_time: f64) -> std::io::Result<()> {
        let plugin_data = Some(PluginData { plugin_name: "text".to_owned() });
        let value = SummaryValue {
            tag: name.to_owned(),
            metadata: Some(SummaryMetadata { plugin_data }),
            // A scalar's shape has no dimension.
            tensor: Some(Tensor {
                dtype: STRING_TYPE,
                tensor_shape: Some(TensorShape {}),
                string_val: vec![text.as_bytes().to_vec()],
            }),
            ..SummaryValue::default()
        };
        let summary = Some(Summary { value: vec![value] });
        self.record(&Event { wall_time, summary, ..Event::default() })
    }

    /// Hands what was written to the system.
    ///
    /// # Errors
    /// When there is no room.
    pub(super) fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }

    fn record(&mut self, event: &Event) -> std::io::Result<()> {
        let event = event.encode_to_vec();
        let length = (event.len() as u64).to_le_bytes();
        self.file.write_all(&length)?;
        self.file.write_all(&masked_checksum(&length).to_le_bytes())?;
        self.file.write_all(&event)?;
        self.file.write_all(&masked_checksum(&event).to_le_bytes())
    }
}

/// Readers go by `tfevents` in the name, and read the files of a folder in the order of their names.
fn path_of(folder: &Path, unique: &str, wall_time: f64) -> PathBuf {
    folder.join(format!("events.out.tfevents.{:010}.{unique}", wall_time as u64))
}

fn masked_checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(MASK_DELTA)
}

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    session_log: Option<SessionLog>,
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<SummaryValue>,
}

#[derive(Clone, PartialEq, Message)]
struct SummaryValue {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
    #[prost(message, optional, tag = "8")]
    tensor: Option<Tensor>,
    #[prost(message, optional, tag = "9")]
    metadata: Option<SummaryMetadata>,
}

#[derive(Clone, PartialEq, Message)]
struct SummaryMetadata {
    #[prost(message, optional, tag = "1")]
    plugin_data: Option<PluginData>,
}

#[derive(Clone, PartialEq, Message)]
struct PluginData {
    #[prost(string, tag = "1")]
    plugin_name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Tensor {
    #[prost(int32, tag = "1")]
    dtype: i32,
    #[prost(message, optional, tag = "2")]
    tensor_shape: Option<TensorShape>,
    #[prost(bytes = "vec", repeated, tag = "8")]
    string_val: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorShape {}

#[cfg(test)]
mod tests {
    use super::*;

    /// What tensorboard 2.21's own record writer makes of this event, with both checksums.
    const FIRST_RECORD: [u8; 40] = *b"\x18\0\0\0\0\0\0\0\xa3\x7f\x4b\x22\
        \x09\0\0\0\0\0\0\xf0\x3f\x1a\x0dbrain.Event:2\x86\xbf\x57\x7a";

    #[test]
    fn the_first_record_is_tensorboards_own() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = EventFile::create(folder.path(), None, 1.0).unwrap();
        file.flush().unwrap();
        let path = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
        assert!(path.to_string_lossy().contains("events.out.tfevents.0000000001."), "{path:?}");
        assert_eq!(std::fs::read(path).unwrap(), FIRST_RECORD);
    }
}
