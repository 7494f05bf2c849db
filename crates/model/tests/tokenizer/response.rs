//! The text of a response behind its prompt, whole and token by token.

use model::{IncrementalDecoder, Tokenizer};
use proptest::prelude::*;

use crate::fixture::{all, metaspace, sentencepiece, trained};

/// The pieces of `tokens` behind `prompt`, the last being what `finish` gives.
fn pieces(tokenizer: &Tokenizer, prompt: &[u32], tokens: &[u32], skip_special: bool) -> Vec<String> {
    let mut decoder = IncrementalDecoder::new(tokenizer, prompt, skip_special).unwrap();
    let mut pieces: Vec<String> =
        tokens.iter().map(|token| decoder.push(tokenizer, *token).unwrap()).collect();
    pieces.push(decoder.finish(tokenizer).unwrap());
    pieces
}

/// What the decision says: the text of both without that of the prompt.
fn difference(tokenizer: &Tokenizer, prompt: &[u32], response: &[u32], skip_special: bool) -> Option<String> {
    let before = tokenizer.decode(prompt, skip_special).unwrap();
    let whole = tokenizer.decode(&[prompt, response].concat(), skip_special).unwrap();
    whole.strip_prefix(&before).map(str::to_owned)
}

#[test]
fn a_response_keeps_its_first_space() {
    let dir = tempfile::tempdir().unwrap();
    for tokenizer in [sentencepiece(dir.path()), metaspace(dir.path())] {
        let whole = tokenizer.encode("ab a   b", true).unwrap();
        for at in 2..whole.len() {
            let (prompt, response) = whole.split_at(at);
            let text = tokenizer.response_text(prompt, response, true).unwrap();
            assert_eq!(tokenizer.decode(prompt, true).unwrap() + &text, "ab a   b");
            assert_eq!(pieces(&tokenizer, prompt, response, true).concat(), text);
        }
    }
}

#[test]
fn a_text_becomes_the_tokens_that_give_it() {
    let dir = tempfile::tempdir().unwrap();
    for (name, tokenizer, _) in all(dir.path()) {
        let prompt = tokenizer.encode("ab\n", true).unwrap();
        for text in ["a", " a", "    a b", "\n", "", "é你🙂 b", "  "] {
            let tokens = tokenizer.encode_response(&prompt, text).unwrap();
            assert_eq!(tokenizer.response_text(&prompt, &tokens, false).unwrap(), text, "{name}");
        }
    }
    // Where a response by itself is right, it is what it was.
    let bytes = trained();
    let text = "    return a<|end|>";
    assert_eq!(bytes.encode_response(&[5], text).unwrap(), bytes.encode(text, false).unwrap());
}

#[test]
fn a_character_comes_out_whole() {
    let tokenizer = trained();
    let text = "x🙂y";
    let tokens = tokenizer.encode(text, false).unwrap();
    let whole = pieces(&tokenizer, &[], &tokens, false);
    assert_eq!(whole.concat(), text);
    assert!(whole.iter().all(|piece| !piece.contains(char::REPLACEMENT_CHARACTER)), "{whole:?}");
    // One that begins in the prompt is the response's.
    let (prompt, response) = tokens.split_at(2);
    assert_eq!(pieces(&tokenizer, prompt, response, false).concat(), "🙂y");
    assert_eq!(tokenizer.response_text(prompt, response, false).unwrap(), "🙂y");
    // What never becomes a character stays with the prompt.
    let other = tokenizer.encode("a", false).unwrap();
    assert_eq!(pieces(&tokenizer, prompt, &other, false).concat(), "a");
    assert_eq!(tokenizer.response_text(prompt, &other, false).unwrap(), "a");
}

#[test]
fn bytes_of_tokens_are_those_of_the_text() {
    let dir = tempfile::tempdir().unwrap();
    let text = "a é你🙂\n";
    for tokenizer in [trained(), sentencepiece(dir.path())] {
        let prompt = tokenizer.encode("b", true).unwrap();
        let tokens = tokenizer.encode_response(&prompt, text).unwrap();
        let texts = pieces(&tokenizer, &prompt, &tokens, false);
        let bytes: Vec<u8> = tokens
            .iter()
            .zip(texts)
            .flat_map(|(token, text)| tokenizer.token_bytes(*token).unwrap_or_else(|| text.into_bytes()))
            .collect();
        assert_eq!(bytes, text.as_bytes());
    }
    assert_eq!(trained().token_bytes(1), Some(b"<|end|>".to_vec()));
    assert_eq!(trained().token_bytes(999_999), None);
    assert_eq!(metaspace(dir.path()).token_bytes(4), None);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn pieces_of_text_are_the_text(before in "[a-c é你🙂\n]{0,40}", text in "[a-c é你🙂\n]{0,24}") {
        let dir = tempfile::tempdir().unwrap();
        for (name, tokenizer, _) in all(dir.path()) {
            let prompt = tokenizer.encode(&before, true).unwrap();
            let tokens = tokenizer.encode_response(&prompt, &text).unwrap();
            let pieces = pieces(&tokenizer, &prompt, &tokens, true);
            let whole = tokenizer.response_text(&prompt, &tokens, true).unwrap();
            prop_assert_eq!(&pieces.concat(), &whole, "{}", name);
            prop_assert_eq!(Some(whole), difference(&tokenizer, &prompt, &tokens, true), "{}", name);
            prop_assert!(pieces.iter().all(|piece| !piece.contains(char::REPLACEMENT_CHARACTER)));
        }
    }

    /// Whatever tokens a network samples, invalid bytes and special tokens among them. With byte fallback one
    /// invalid byte spoils the characters beside it, but only then do the pieces differ.
    #[test]
    fn pieces_of_any_tokens_are_their_text(
        prompt in proptest::collection::vec(0u32..310, 0..40),
        tokens in proptest::collection::vec(0u32..310, 0..40),
        skip: bool,
    ) {
        let dir = tempfile::tempdir().unwrap();
        for (name, tokenizer, size) in all(dir.path()) {
            let [prompt, tokens] = [&prompt, &tokens].map(|all| all.iter().map(|id| id % size).collect::<Vec<_>>());
            let whole = tokenizer.response_text(&prompt, &tokens, skip).unwrap();
            if let Some(difference) = difference(&tokenizer, &prompt, &tokens, skip) {
                prop_assert!(whole == difference || name == "sentencepiece", "{whole:?} {difference:?}");
            }
            let found = pieces(&tokenizer, &prompt, &tokens, skip).concat();
            let spoilt = name == "sentencepiece" && tokenizer
                .decode(&[prompt, tokens].concat(), skip)
                .unwrap()
                .contains(char::REPLACEMENT_CHARACTER);
            prop_assert!(found == whole || spoilt, "{name}: {found:?} {whole:?}");
        }
    }
}
