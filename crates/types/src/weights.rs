//! What a policy version's weights are: names, shapes, types and hashes, in the order of the flat buffer that
//! carries them.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Invalid, PolicyVersion};

/// Element type of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
        let bad = || Invalid::new("weight hash", "must be 64 hexadecimal digits");
        if text.len() != 64 || !text.is_ascii() {
            return Err(bad());
        }
        let mut bytes = [0; 32];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(|_| bad())?;
        }
        Ok(Self(bytes))
    }
}

/// One tensor in the flat buffer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorEntry {
    /// Its name in the Hugging Face folder.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<u64>,
    /// Its element type.
    pub dtype: DType,
    /// Hash of its little-endian row-major bytes.
    pub hash: WeightHash,
}

impl TensorEntry {
    /// Its bytes in the flat buffer; `None` when the product of the dimensions is out of range.
    pub fn bytes(&self) -> Option<u64> {
        self.shape.iter().try_fold(self.dtype.size(), |product, dim| product.checked_mul(*dim))
    }
}

/// The weights of one policy version: tensors lie one after the other in this order, without gaps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version these weights are.
    pub version: PolicyVersion,
    /// The tensors, in buffer order.
    pub tensors: Vec<TensorEntry>,
    /// Hash of the tensors' hashes in order: the identity of the weights.
    pub hash: WeightHash,
}

impl Manifest {
    /// The manifest of a flat buffer that holds tensors of these names, shapes and types one after the other.
    ///
    /// # Errors
    /// When the tensors do not fill the buffer exactly.
    pub fn of_buffer(
        version: PolicyVersion,
        tensors: Vec<(String, Vec<u64>, DType)>,
        buffer: &[u8],
    ) -> Result<Self, Invalid> {
        let mut rest = buffer;
        let mut entries = Vec::with_capacity(tensors.len());
        for (name, shape, dtype) in tensors {
            let mut entry = TensorEntry { name, shape, dtype, hash: WeightHash([0; 32]) };
            let bytes = entry.bytes().and_then(|bytes| usize::try_from(bytes).ok());
            let Some((own, others)) = bytes.and_then(|bytes| rest.split_at_checked(bytes)) else {
                let what = format!("tensor {} of {version}", entry.name);
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
        let hash = Self::hash_of(&entries);
        Ok(Self { version, tensors: entries, hash })
    }

    /// Checks that `buffer` holds exactly these weights.
    ///
    /// # Errors
    /// Names the first tensor that differs.
    pub fn verify(&self, buffer: &[u8]) -> Result<(), Invalid> {
        let described =
            self.tensors.iter().map(|entry| (entry.name.clone(), entry.shape.clone(), entry.dtype));
        let found = Self::of_buffer(self.version, described.collect(), buffer)?;
        let differs =
            self.tensors.iter().zip(&found.tensors).find(|(wanted, found)| wanted.hash != found.hash);
        match differs {
            Some((wanted, found)) => Err(Invalid::new(
                format!("tensor {} of {}", wanted.name, self.version),
                format!("has hash {}, expected {}", found.hash, wanted.hash),
            )),
            None if found.hash != self.hash => {
                Err(Invalid::new(format!("manifest of {}", self.version), "does not hash to its own hash"))
            }
            None => Ok(()),
        }
    }

    fn hash_of(entries: &[TensorEntry]) -> WeightHash {
        let mut hasher = blake3::Hasher::new();
        for entry in entries {
            hasher.update(&entry.hash.0);
        }
        WeightHash(*hasher.finalize().as_bytes())
    }

    /// Bytes of the whole flat buffer.
    ///
    /// # Errors
    /// Names the tensor at which the size overflows.
    pub fn total_bytes(&self) -> Result<u64, Invalid> {
        self.tensors.iter().try_fold(0u64, |total, entry| {
            entry.bytes().and_then(|bytes| total.checked_add(bytes)).ok_or_else(|| {
                Invalid::new(format!("tensor {} of {}", entry.name, self.version), "its size overflows")
            })
        })
    }
}

/// A plain file of a model folder: configuration or tokenizer, never weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFile {
    /// Its file name, without any folder.
    pub name: String,
    /// Its bytes.
    pub content: Vec<u8>,
}

impl ModelFile {
    /// A file whose name cannot leave the folder it is written to.
    ///
    /// # Errors
    /// When the name is empty, hidden, or more than a plain file name.
    pub fn new(name: String, content: Vec<u8>) -> Result<Self, Invalid> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if name.is_empty() || name.starts_with('.') || name.len() > 128 || !name.bytes().all(plain) {
            let shown: String = name.chars().take(128).collect();
            return Err(Invalid::new(format!("model file {shown:?}"), "is not a plain file name"));
        }
        Ok(Self { name, content })
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

    #[test]
    fn a_buffer_is_verified_tensor_by_tensor() {
        let buffer: Vec<u8> = (0..40).collect();
        let tensors = vec![("a".to_owned(), vec![2, 3], DType::F32), ("b".to_owned(), vec![8], DType::Bf16)];
        let manifest = Manifest::of_buffer(PolicyVersion(2), tensors.clone(), &buffer).unwrap();
        assert_eq!(manifest.total_bytes().unwrap(), 40);
        manifest.verify(&buffer).unwrap();
        for at in 0..buffer.len() {
            let mut flipped = buffer.clone();
            flipped[at] ^= 4;
            let error = manifest.verify(&flipped).unwrap_err();
            assert!(error.what.contains(if at < 24 { "tensor a" } else { "tensor b" }), "{error}");
        }
        assert!(manifest.verify(&buffer[..39]).is_err());
        assert!(Manifest::of_buffer(PolicyVersion(2), tensors, &[0; 41]).is_err());
        let forged = Manifest { hash: WeightHash([1; 32]), ..manifest };
        assert!(forged.verify(&buffer).is_err());
    }

    #[test]
    fn sizes_do_not_overflow() {
        let entry = |shape: Vec<u64>| TensorEntry {
            name: "w".into(),
            shape,
            dtype: DType::Bf16,
            hash: WeightHash([0; 32]),
        };
        assert_eq!(entry(vec![3, 4]).bytes(), Some(24));
        let manifest = |tensors| Manifest { version: PolicyVersion(1), tensors, hash: WeightHash([0; 32]) };
        assert_eq!(manifest(vec![entry(vec![2]), entry(vec![])]).total_bytes().unwrap(), 6);
        assert!(manifest(vec![entry(vec![u64::MAX, 2])]).total_bytes().is_err());
    }
}
