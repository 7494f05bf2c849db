//! The bytes that a token stands for, whatever stands beside it.

use super::Tokenizer;

/// How a vocabulary spells bytes that are no characters by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ByteSpelling {
    /// Every byte is a printable character, as in GPT-2.
    Characters,
    /// `<0x0A>`, one token each, as in Llama 2.
    Hexadecimal,
    /// It has no bytes.
    None,
}

impl ByteSpelling {
    pub(super) fn of(tokenizer: &tokenizers::Tokenizer) -> Self {
        // The decoder may be a sequence of several; its JSON names them all.
        let decoder = tokenizer.get_decoder().and_then(|decoder| serde_json::to_string(decoder).ok());
        match decoder {
            Some(names) if names.contains("\"ByteLevel\"") => Self::Characters,
            Some(names) if names.contains("\"ByteFallback\"") => Self::Hexadecimal,
            _ => Self::None,
        }
    }
}

impl Tokenizer {
    /// The bytes of a token, a part of a character perhaps; `None` where they depend on the tokens beside it,
    /// or there is no such token.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        if let Some(text) = self.special_texts.get(&id) {
            return Some(text.clone().into_bytes());
        }
        let token = self.token(id)?;
        match self.byte_spelling {
            ByteSpelling::Characters => {
                let bytes: Option<Vec<u8>> = token.chars().map(byte_of_character).collect();
                bytes.or_else(|| Some(token.into_bytes()))
            }
            ByteSpelling::Hexadecimal => {
                let digits =
                    token.strip_prefix("<0x")?.strip_suffix('>').filter(|digits| digits.len() == 2)?;
                u8::from_str_radix(digits, 16).ok().map(|byte| vec![byte])
            }
            ByteSpelling::None => None,
        }
    }
}

/// GPT-2's alphabet: printable bytes of Latin-1 stand for themselves, all others for the characters from
/// U+0100 on, in their order.
fn byte_of_character(character: char) -> Option<u8> {
    let code = u32::from(character);
    if let Ok(byte) = u8::try_from(code) {
        return is_printable(byte).then_some(byte);
    }
    let others = (0..=u8::MAX).filter(|byte| !is_printable(*byte));
    others.zip(0x100..).find_map(|(byte, stand_in)| (stand_in == code).then_some(byte))
}

fn is_printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)
}
