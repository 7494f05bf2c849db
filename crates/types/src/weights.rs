//! What a policy version's weights are: names, shapes, types and hashes, in the order of the flat buffer that
//! carries them.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Invalid, PolicyVersion};

/// Longest name of a tensor, in bytes.
const MAX_TENSOR_NAME_BYTES: usize = 512;

/// Most dimensions of a tensor.
const MAX_DIMENSIONS: usize = 8;

/// Longest name of a model folder's file, in bytes.
const MAX_FILE_NAME_BYTES: usize = 128;

/// Element type of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DType {
    /// 32-bit IEEE float.
    F32,
    /// Brain float: the upper half of an `F32`.
    Bf16,
    /// 16-bit IEEE float.
    F16,
}

impl DType {
    /// Bytes per element.
    pub fn size(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }
}

/// BLAKE3 of bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WeightHash(pub [u8; 32]);

impl fmt::Display for WeightHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for WeightHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl From<WeightHash> for String {
    fn from(hash: WeightHash) -> String {
        hash.to_string()
    }
}

impl TryFrom<String> for WeightHash {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        if text.len() != 64 || !text.is_ascii() {
            return Err(not_a_hash());
        }
        let mut bytes = [0; 32];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(|_| not_a_hash())?;
        }
        Ok(Self(bytes))
    }
}

fn not_a_hash() -> Invalid {
    Invalid::new("weight hash", "must be 64 hexadecimal digits")
}

/// What a tensor of a flat buffer is called and how it is laid out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorLayout {
    /// Its name in the Hugging Face folder, 1 to 512 bytes.
    pub name: String,
    /// Its dimensions, at most 8; none for a single number.
    pub shape: Vec<u64>,
    /// Its element type.
    pub dtype: DType,
}

/// One tensor in the flat buffer: a layout within its bounds, and the hash of the content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "EntryFields", into = "EntryFields")]
pub struct TensorEntry {
    layout: TensorLayout,
    hash: WeightHash,
}

impl TensorEntry {
    /// A tensor whose little-endian row-major bytes have this hash.
    ///
    /// # Errors
    /// When the layout has no name, a name that is too long, too many dimensions or a size that overflows.
    pub fn new(layout: TensorLayout, hash: WeightHash) -> Result<Self, Invalid> {
        let TensorLayout { name, shape, dtype } = &layout;
        if name.is_empty() || name.len() > MAX_TENSOR_NAME_BYTES || shape.len() > MAX_DIMENSIONS {
            let problem = format!(
                "must have 1 to {MAX_TENSOR_NAME_BYTES} bytes and at most {MAX_DIMENSIONS} dimensions"
            );
            return Err(Invalid::new(shown(name), problem));
        }
        if shape.iter().try_fold(dtype.size(), |product, dim| product.checked_mul(*dim)).is_none() {
            return Err(Invalid::new(shown(name), "its size overflows"));
        }
        Ok(Self { layout, hash })
    }

    /// Its name in the Hugging Face folder.
    pub fn name(&self) -> &str {
        &self.layout.name
    }

    /// Its dimensions; none for a single number.
    pub fn shape(&self) -> &[u64] {
        &self.layout.shape
    }

    /// Its element type.
    pub fn dtype(&self) -> DType {
        self.layout.dtype
    }

    /// Hash of its little-endian row-major bytes.
    pub fn hash(&self) -> WeightHash {
        self.hash
    }

    /// Its bytes in the flat buffer.
    pub fn bytes(&self) -> u64 {
        self.layout.shape.iter().product::<u64>() * self.layout.dtype.size()
    }
}

/// A tensor's name as a message shows it.
fn shown(name: &str) -> String {
    format!("tensor {:?}", name.chars().take(128).collect::<String>())
}

/// A [`TensorEntry`] as it is stored.
#[derive(Serialize, Deserialize)]
struct EntryFields {
    name: String,
    shape: Vec<u64>,
    dtype: DType,
    hash: WeightHash,
}

impl TryFrom<EntryFields> for TensorEntry {
    type Error = Invalid;

    fn try_from(fields: EntryFields) -> Result<Self, Invalid> {
        let EntryFields { name, shape, dtype, hash } = fields;
        Self::new(TensorLayout { name, shape, dtype }, hash)
    }
}

impl From<TensorEntry> for EntryFields {
    fn from(entry: TensorEntry) -> Self {
        let TensorEntry { layout: TensorLayout { name, shape, dtype }, hash } = entry;
        Self { name, shape, dtype, hash }
    }
}

/// The weights of one policy version: tensors lie one after the other in this order, without gaps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "ManifestFields", into = "ManifestFields")]
pub struct Manifest {
    version: PolicyVersion,
    tensors: Vec<TensorEntry>,
    hash: WeightHash,
}

impl Manifest {
    /// The manifest of these tensors, in buffer order.
    ///
    /// # Errors
    /// When the size of all of them together overflows.
    pub fn new(version: PolicyVersion, tensors: Vec<TensorEntry>) -> Result<Self, Invalid> {
        if tensors.iter().try_fold(0u64, |total, entry| total.checked_add(entry.bytes())).is_none() {
            return Err(Invalid::new(format!("weights {version}"), "their size overflows"));
        }
        let mut hasher = blake3::Hasher::new();
        for entry in &tensors {
            hasher.update(&entry.hash.0);
        }
        let hash = WeightHash(*hasher.finalize().as_bytes());
        Ok(Self { version, tensors, hash })
    }

    /// The manifest of these tensors as another process or a file states it, with its hash.
    ///
    /// # Errors
    /// As [`Manifest::new`], and when the hashes of the tensors do not give this hash.
    pub fn stated(
        version: PolicyVersion,
        tensors: Vec<TensorEntry>,
        hash: WeightHash,
    ) -> Result<Self, Invalid> {
        let manifest = Self::new(version, tensors)?;
        if manifest.hash != hash {
            return Err(Invalid::new(format!("manifest of {version}"), "does not hash to its own hash"));
        }
        Ok(manifest)
    }

    /// The manifest of a flat buffer that holds tensors of these layouts one after the other.
    ///
    /// # Errors
    /// When the tensors do not fill the buffer exactly, or a layout is out of bounds.
    pub fn of_buffer(
        version: PolicyVersion,
        layouts: Vec<TensorLayout>,
        buffer: &[u8],
    ) -> Result<Self, Invalid> {
        let mut rest = buffer;
        let mut entries = Vec::with_capacity(layouts.len());
        for layout in layouts {
            let mut entry = TensorEntry::new(layout, WeightHash([0; 32]))?;
            let bytes = usize::try_from(entry.bytes()).ok();
            let Some((own, others)) = bytes.and_then(|bytes| rest.split_at_checked(bytes)) else {
                let what = format!("tensor {} of {version}", entry.name());
                return Err(Invalid::new(what, format!("does not fit into the {} bytes left", rest.len())));
            };
            entry.hash = WeightHash(*blake3::hash(own).as_bytes());
            entries.push(entry);
            rest = others;
        }
        if !rest.is_empty() {
            let problem = format!("{} bytes are left over behind its tensors", rest.len());
            return Err(Invalid::new(format!("weights {version}"), problem));
        }
        Self::new(version, entries)
    }

    /// Checks that `buffer` holds exactly these weights.
    ///
    /// # Errors
    /// Names the first tensor that differs, or says that the buffer has another size.
    pub fn verify(&self, buffer: &[u8]) -> Result<(), Invalid> {
        let layouts = self.tensors.iter().map(|entry| entry.layout.clone()).collect();
        let found = Self::of_buffer(self.version, layouts, buffer)?;
        for (wanted, found) in self.tensors.iter().zip(&found.tensors) {
            if wanted.hash != found.hash {
                return Err(Invalid::new(
                    format!("tensor {} of {}", wanted.name(), self.version),
                    format!("has hash {}, expected {}", found.hash, wanted.hash),
                ));
            }
        }
        Ok(())
    }

    /// The version these weights are.
    pub fn version(&self) -> PolicyVersion {
        self.version
    }

    /// The tensors, in buffer order.
    pub fn tensors(&self) -> &[TensorEntry] {
        &self.tensors
    }

    /// Hash of the tensors' hashes in order: the identity of the weights.
    pub fn hash(&self) -> WeightHash {
        self.hash
    }

    /// Bytes of the whole flat buffer.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.iter().map(TensorEntry::bytes).sum()
    }
}

/// A [`Manifest`] as it is stored.
#[derive(Serialize, Deserialize)]
struct ManifestFields {
    version: PolicyVersion,
    tensors: Vec<TensorEntry>,
    hash: WeightHash,
}

impl TryFrom<ManifestFields> for Manifest {
    type Error = Invalid;

    fn try_from(fields: ManifestFields) -> Result<Self, Invalid> {
        Self::stated(fields.version, fields.tensors, fields.hash)
    }
}

impl From<Manifest> for ManifestFields {
    fn from(manifest: Manifest) -> Self {
        let Manifest { version, tensors, hash } = manifest;
        Self { version, tensors, hash }
    }
}

/// A plain file of a model folder: configuration or tokenizer, never weights. Its name cannot leave the
/// folder that it is written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFile {
    name: String,
    content: Vec<u8>,
}

impl ModelFile {
    /// A file of this name and these bytes.
    ///
    /// # Errors
    /// When the name is empty, hidden, or more than a plain file name.
    pub fn new(name: String, content: Vec<u8>) -> Result<Self, Invalid> {
        if name.is_empty()
            || name.starts_with('.')
            || name.len() > MAX_FILE_NAME_BYTES
            || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        {
            let shown: String = name.chars().take(MAX_FILE_NAME_BYTES).collect();
            return Err(Invalid::new(format!("model file {shown:?}"), "is not a plain file name"));
        }
        Ok(Self { name, content })
    }

    /// Its file name, without any folder.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The bytes of the file.
    pub fn content(&self) -> &[u8] {
        &self.content
    }

    /// Its name and its bytes.
    pub fn into_parts(self) -> (String, Vec<u8>) {
        (self.name, self.content)
    }
}

/// What a late joiner needs before it can pull weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelDescription {
    /// `config.json`, the tokenizer and its like.
    pub files: Vec<ModelFile>,
    /// The newest version's weights.
    pub manifest: Manifest,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_file_cannot_leave_its_folder() {
        assert!(ModelFile::new("config.json".into(), Vec::new()).is_ok());
        for bad in ["", ".", "..", "../x", "a/b", "/etc/passwd", ".bashrc", "a\0"] {
            assert!(ModelFile::new(bad.into(), Vec::new()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn hashes_survive_text() {
        let hash = WeightHash(std::array::from_fn(|at| u8::try_from(at * 7 % 256).unwrap()));
        assert_eq!(WeightHash::try_from(hash.to_string()).unwrap(), hash);
        assert!(WeightHash::try_from("zz".repeat(32)).is_err());
        assert!(WeightHash::try_from("ä".repeat(32)).is_err());
    }

    fn layout(name: &str, shape: &[u64], dtype: DType) -> TensorLayout {
        TensorLayout { name: name.to_owned(), shape: shape.to_vec(), dtype }
    }

    fn entry(shape: &[u64]) -> Result<TensorEntry, Invalid> {
        TensorEntry::new(layout("w", shape, DType::Bf16), WeightHash([0; 32]))
    }

    #[test]
    fn a_buffer_is_verified_tensor_by_tensor() {
        let buffer: Vec<u8> = (0..40).collect();
        let layouts = vec![layout("a", &[2, 3], DType::F32), layout("b", &[8], DType::Bf16)];
        let manifest = Manifest::of_buffer(PolicyVersion(2), layouts.clone(), &buffer).unwrap();
        assert_eq!(manifest.total_bytes(), 40);
        manifest.verify(&buffer).unwrap();
        for at in 0..buffer.len() {
            let mut flipped = buffer.clone();
            flipped[at] ^= 4;
            let error = manifest.verify(&flipped).unwrap_err();
            assert!(error.what.contains(if at < 24 { "tensor a" } else { "tensor b" }), "{error}");
        }
        assert!(manifest.verify(&buffer[..39]).is_err());
        assert!(Manifest::of_buffer(PolicyVersion(2), layouts, &[0; 41]).is_err());
    }

    #[test]
    fn a_manifest_with_a_forged_hash_is_refused() {
        let tensors = vec![entry(&[2, 3]).unwrap()];
        let manifest = Manifest::new(PolicyVersion(2), tensors.clone()).unwrap();
        assert!(Manifest::stated(PolicyVersion(2), tensors.clone(), WeightHash([1; 32])).is_err());
        assert_eq!(Manifest::stated(PolicyVersion(2), tensors, manifest.hash()).unwrap(), manifest);
        let stored = serde_json::to_string(&manifest).unwrap();
        assert_eq!(serde_json::from_str::<Manifest>(&stored).unwrap(), manifest);
        let forged = stored.replace("00", "01");
        assert!(serde_json::from_str::<Manifest>(&forged).is_err());
    }

    #[test]
    fn sizes_do_not_overflow() {
        assert_eq!(entry(&[3, 4]).unwrap().bytes(), 24);
        assert!(entry(&[u64::MAX, 2]).is_err());
        assert!(entry(&[1; 9]).is_err());
        let tensors = vec![entry(&[2]).unwrap(), entry(&[]).unwrap()];
        assert_eq!(Manifest::new(PolicyVersion(1), tensors).unwrap().total_bytes(), 6);
        let huge = entry(&[1 << 62]).unwrap();
        assert!(Manifest::new(PolicyVersion(1), vec![huge.clone(), huge]).is_err());
    }
}
