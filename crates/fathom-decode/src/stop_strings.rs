//! Stop strings in streamed text.

/// Finds stop strings in a text that arrives in pieces. The joined output is the text up to the
/// first stop string, independent of the pieces. Text that may become a stop string is held back.
///
/// ```
/// use fathom_decode::StopStrings;
///
/// let mut stops = StopStrings::new(vec!["</end>".to_owned()]);
/// assert_eq!(stops.push("some text<"), "some text");
/// assert_eq!(stops.push("b></e"), "<b>");
/// assert_eq!(stops.push("nd> and more"), "");
/// assert!(stops.stopped());
/// ```
#[derive(Clone, Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    /// Text held back.
    held: String,
    /// Stop strings that end within the first `exempt` bytes of `held` are ignored.
    exempt: usize,
    stopped: bool,
}

impl StopStrings {
    /// Looks for `stops`, none of them empty. Without any, all text passes through.
    pub fn new(stops: Vec<String>) -> StopStrings {
        StopStrings { stops, held: String::new(), exempt: 0, stopped: false }
    }

    /// Whether there are no stop strings.
    pub fn is_empty(&self) -> bool {
        self.stops.is_empty()
    }

    /// Whether a stop string has appeared.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Adds the next piece and returns the text that is final. Empty after a stop string.
    pub fn push(&mut self, piece: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(piece);
        if let Some(start) = first_stop(&self.held, self.exempt, &self.stops) {
            self.stopped = true;
            self.held.truncate(start);
            return std::mem::take(&mut self.held);
        }
        self.release()
    }

    /// Adds a piece within which complete stop strings are ignored. One that starts in it and ends
    /// later counts.
    pub fn push_exempt(&mut self, piece: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(piece);
        self.exempt = self.held.len();
        self.release()
    }

    /// Removes and returns the text that cannot become part of a stop string.
    fn release(&mut self) -> String {
        let undecided = self.stops.iter().map(|stop| undecided(&self.held, stop)).max();
        let certain = self.held.len() - undecided.unwrap_or(0);
        self.exempt = self.exempt.saturating_sub(certain);
        let rest = self.held.split_off(certain);
        std::mem::replace(&mut self.held, rest)
    }

    /// Ends the text and returns what was held back.
    pub fn finish(self) -> String {
        self.held // empty after a stop string
    }
}

/// Start of the stop string that ends first, of those that end after byte `exempt`. Of two that end
/// at the same byte, the longer one.
fn first_stop(text: &str, exempt: usize, stops: &[String]) -> Option<usize> {
    let found = stops.iter().filter_map(|stop| {
        let mut from = (exempt + 1).saturating_sub(stop.len());
        while !text.is_char_boundary(from) {
            from += 1; // the end of the text is a boundary
        }
        let at = from + text.get(from..)?.find(stop)?;
        Some((at + stop.len(), at))
    });
    found.min().map(|(_, start)| start)
}

/// Length in bytes of the longest suffix of `text` that is a proper prefix of `stop`.
fn undecided(text: &str, stop: &str) -> usize {
    let beginnings = stop.char_indices().skip(1).map(|(i, _)| &stop[..i]);
    beginnings.filter(|beginning| text.ends_with(beginning)).map(str::len).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reference implementation: the text up to the first stop string, character by character.
    fn cut<'a>(text: &'a str, stops: &[String]) -> &'a str {
        for (i, letter) in text.char_indices() {
            let read = &text[..i + letter.len_utf8()];
            let ending = stops.iter().filter(|stop| read.ends_with(*stop));
            if let Some(longest) = ending.map(String::len).max() {
                return &read[..read.len() - longest];
            }
        }
        text
    }

    proptest! {
        /// A small alphabet with two-byte letters, so that stop strings overlap and occur often.
        #[test]
        fn pieces_joined_are_the_text_up_to_the_first_stop(
            pieces in prop::collection::vec("[abé]{0,4}", 0..12),
            stops in prop::collection::vec("[abé]{1,4}", 0..3),
        ) {
            let text = pieces.concat();
            let mut watch = StopStrings::new(stops.clone());
            let mut given = String::new();
            for piece in &pieces {
                given.push_str(&watch.push(piece));
            }
            let stopped = watch.stopped();
            given.push_str(&watch.finish());
            let expected = cut(&text, &stops);
            prop_assert_eq!(stopped, expected.len() < text.len());
            prop_assert_eq!(given, expected);
        }
    }

    proptest! {
        /// Stop strings that are complete within the exempt pieces are ignored. Those complete
        /// later count, wherever they start.
        #[test]
        fn exempt_pieces_end_nothing(
            exempt in prop::collection::vec("[abé]{0,4}", 0..6),
            pieces in prop::collection::vec("[abé]{0,4}", 0..8),
            stops in prop::collection::vec("[abé]{1,4}", 0..3),
        ) {
            let mut watch = StopStrings::new(stops.clone());
            let mut given = String::new();
            exempt.iter().for_each(|piece| given += &watch.push_exempt(piece));
            prop_assert!(!watch.stopped());
            pieces.iter().for_each(|piece| given += &watch.push(piece));
            let stopped = watch.stopped();
            given += &watch.finish();

            let (free, text) = (exempt.concat().len(), exempt.concat() + &pieces.concat());
            let mut ends = text.char_indices().map(|(i, letter)| i + letter.len_utf8());
            let longest = |end: usize| {
                let ending = stops.iter().filter(|stop| text[..end].ends_with(*stop));
                ending.map(String::len).max().map(|longest| end - longest)
            };
            let cut = ends.find_map(|end| if end > free { longest(end) } else { None });
            prop_assert_eq!(stopped, cut.is_some());
            prop_assert_eq!(given, &text[..cut.unwrap_or(text.len())]);
        }
    }

    /// `béb` starts first, but `é` ends first. If the check waited for `béb`, the result would
    /// depend on how the text is divided into pieces.
    #[test]
    fn the_stop_string_that_is_complete_first_counts() {
        for pieces in [vec!["bbéb"], vec!["bb", "é", "b"]] {
            let mut watch = StopStrings::new(vec!["é".to_owned(), "béb".to_owned()]);
            let given: String = pieces.iter().map(|piece| watch.push(piece)).collect();
            assert_eq!(given + &watch.finish(), "bb");
        }
    }

    #[test]
    fn text_that_cannot_become_a_stop_string_is_returned_at_once() {
        let mut watch = StopStrings::new(vec!["END".to_owned()]);
        assert_eq!(watch.push("abcE"), "abc");
        assert_eq!(watch.push("N"), "");
        assert_eq!(watch.push("x"), "ENx");
        assert_eq!(watch.push("yEND!"), "y");
        assert!(watch.stopped());
        assert_eq!(watch.push("more"), "");
    }
}
