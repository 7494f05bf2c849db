//! Output of which a person, or a policy, is shown the beginning and the end.

use std::collections::VecDeque;

/// Bytes that came, as many as may be shown.
#[derive(Debug)]
pub(super) struct Cut {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    /// Most bytes of the head, and of the tail.
    half: usize,
    /// Bytes that came in all.
    came: u64,
}

impl Cut {
    /// Of what comes, at most `shown` bytes are kept: the beginning, and the end with the last words of an
    /// exception.
    pub(super) fn new(shown: usize) -> Self {
        Self { head: Vec::new(), tail: VecDeque::new(), half: shown / 2, came: 0 }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.came += bytes.len() as u64;
        let (head, rest) = bytes.split_at(bytes.len().min(self.half - self.head.len()));
        self.head.extend_from_slice(head);
        let last = &rest[rest.len().saturating_sub(self.half)..];
        let excess = (self.tail.len() + last.len()).saturating_sub(self.half);
        self.tail.drain(..excess.min(self.tail.len()));
        self.tail.extend(last);
    }

    /// Bytes that came.
    pub(super) fn came(&self) -> u64 {
        self.came
    }

    /// What is shown, with a mark where bytes are left out, and how many these are.
    pub(super) fn text(self) -> (String, u64) {
        let tail: Vec<u8> = self.tail.into();
        let left_out = self.came - (self.head.len() + tail.len()) as u64;
        if left_out == 0 {
            return (String::from_utf8_lossy(&[self.head, tail].concat()).into_owned(), 0);
        }
        // Not from inside a character, nor up to there.
        let whole =
            self.head.utf8_chunks().map(|chunk| chunk.valid().len() + chunk.invalid().len()).sum::<usize>();
        let partial = self.head.utf8_chunks().last().map_or(0, |chunk| chunk.invalid().len());
        let head = &self.head[..whole - partial.min(3)];
        let inside = tail.iter().take(3).take_while(|byte| **byte & 0xC0 == 0x80).count();
        let (cut, tail) = tail.split_at(inside);
        let left_out = left_out + (self.head.len() - head.len() + cut.len()) as u64;
        let (head, tail) = (String::from_utf8_lossy(head), String::from_utf8_lossy(tail));
        (format!("{head}\n[{left_out} bytes are left out here]\n{tail}"), left_out)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_middle_of_long_output_is_left_out() {
        let mut cut = Cut::new(10);
        cut.push(b"abc");
        cut.push(b"defgh");
        assert_eq!(cut.text(), ("abcdefgh".to_owned(), 0));
        let mut cut = Cut::new(10);
        (0..100).for_each(|at| cut.push(format!("{at} ").as_bytes()));
        let (text, left_out) = cut.text();
        assert_eq!((text.as_str(), left_out), ("0 1 2\n[280 bytes are left out here]\n8 99 ", 280));
        let mut cut = Cut::new(9);
        cut.push("ééééééé".as_bytes());
        assert_eq!(cut.text(), ("éé\n[6 bytes are left out here]\néé".to_owned(), 6));
    }

    proptest! {
        #[test]
        fn what_is_shown_is_bounded_and_what_is_not_is_counted(
            pieces in prop::collection::vec("[aé\u{1F336}]{0,9}", 0..12),
            shown in 8usize..40,
        ) {
            let whole = pieces.concat();
            let mut cut = Cut::new(shown);
            pieces.iter().for_each(|piece| cut.push(piece.as_bytes()));
            prop_assert_eq!(cut.came(), whole.len() as u64);
            let (text, left_out) = cut.text();
            if left_out == 0 {
                prop_assert_eq!(text, whole);
            } else {
                let mark = format!("\n[{left_out} bytes are left out here]\n");
                let (head, tail) = text.split_once(&mark).unwrap();
                prop_assert!(whole.starts_with(head) && whole.ends_with(tail), "{text:?} of {whole:?}");
                prop_assert_eq!(head.len() + tail.len() + usize::try_from(left_out).unwrap(), whole.len());
                prop_assert!(head.len() + tail.len() <= shown);
            }
        }
    }
}
