//! Ending a text where a stop string first appears, while it is being streamed.

/// Watches a text arrive piece by piece. The pieces given out, joined, are the text up to the first
/// stop string, whatever the pieces were; what might yet become a stop string is held back.
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
    held: String,
    /// Bytes at the beginning of `held` in which no stop string counts that is complete there.
    exempt: usize,
    stopped: bool,
}

impl StopStrings {
    /// Watches for `stops`, none of them empty; with none the text passes through.
    pub fn new(stops: Vec<String>) -> StopStrings {
        StopStrings { stops, held: String::new(), exempt: 0, stopped: false }
    }

    /// Whether there is nothing to watch for.
    pub fn is_empty(&self) -> bool {
        self.stops.is_empty()
    }

    /// Whether a stop string has appeared.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Takes the next piece and returns what is certainly text. After a stop string: nothing.
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

    /// Takes a piece in which no stop string counts; one that begins in it may count later.
    pub fn push_exempt(&mut self, piece: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(piece);
        self.exempt = self.held.len();
        self.release()
    }

    /// What is certainly text.
    fn release(&mut self) -> String {
        let undecided = self.stops.iter().map(|stop| undecided(&self.held, stop)).max();
        let certain = self.held.len() - undecided.unwrap_or(0);
        self.exempt = self.exempt.saturating_sub(certain);
        let rest = self.held.split_off(certain);
        std::mem::replace(&mut self.held, rest)
    }

    /// The text has ended: what was held back is text after all.
    pub fn finish(self) -> String {
        self.held // nothing, once a stop string has appeared
    }
}

/// Where the stop string begins that is complete first, but not within the first `exempt` bytes; of
/// two complete at once, the longer.
fn first_stop(text: &str, exempt: usize, stops: &[String]) -> Option<usize> {
    let found = stops.iter().filter_map(|stop| {
        let mut from = (exempt + 1).saturating_sub(stop.len());
        while !text.is_char_boundary(from) {
            from += 1; // ends at the latest at the text's end
        }
        let at = from + text.get(from..)?.find(stop)?;
        Some((at + stop.len(), at))
    });
    found.min().map(|(_, start)| start)
}

/// Bytes of the longest end of `text` that is a beginning of `stop`.
fn undecided(text: &str, stop: &str) -> usize {
    let beginnings = stop.char_indices().skip(1).map(|(i, _)| &stop[..i]);
    beginnings.filter(|beginning| text.ends_with(beginning)).map(str::len).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The text up to the first stop string, reading it letter by letter.
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
        /// Stop strings complete within the first pieces do not count, those complete later do,
        /// wherever they begin: as if the text were read letter by letter and nothing looked for at
        /// first.
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

    /// `béb` begins first, but `é` is complete first: reading further would depend on the pieces.
    #[test]
    fn the_stop_string_that_is_complete_first_counts() {
        for pieces in [vec!["bbéb"], vec!["bb", "é", "b"]] {
            let mut watch = StopStrings::new(vec!["é".to_owned(), "béb".to_owned()]);
            let given: String = pieces.iter().map(|piece| watch.push(piece)).collect();
            assert_eq!(given + &watch.finish(), "bb");
        }
    }

    #[test]
    fn what_cannot_become_a_stop_string_is_given_out_at_once() {
        let mut watch = StopStrings::new(vec!["END".to_owned()]);
        assert_eq!(watch.push("abcE"), "abc");
        assert_eq!(watch.push("N"), "");
        assert_eq!(watch.push("x"), "ENx");
        assert_eq!(watch.push("yEND!"), "y");
        assert!(watch.stopped());
        assert_eq!(watch.push("more"), "");
    }
}
