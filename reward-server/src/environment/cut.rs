//! Texts of which a policy is shown the beginning and the end.

/// At most so many bytes of a text: its beginning and its end with a mark between them; how many bytes are
/// left out.
pub(super) fn cut(text: String, most: usize) -> (String, u64) {
    if text.len() <= most {
        return (text, 0);
    }
    let head = text.floor_char_boundary(most / 2);
    let tail = text.ceil_char_boundary(text.len() - most / 2);
    let left_out = tail - head;
    let shown = format!("{}\n[{left_out} bytes are left out here]\n{}", &text[..head], &text[tail..]);
    (shown, left_out as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_a_long_text_is_left_out_between_characters() {
        assert_eq!(cut("abc".to_owned(), 3), ("abc".to_owned(), 0));
        let (shown, left_out) = cut("äöüäöü".to_owned(), 6);
        assert_eq!(left_out, 8, "no half of a character is shown");
        assert_eq!(shown, "ä\n[8 bytes are left out here]\nü");
    }
}
