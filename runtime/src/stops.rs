//! Ends a text before the first of some strings, whatever pieces it comes in.

/// Watches a text for strings that end it. What may be the beginning of one is held back.
#[derive(Debug, Clone, Default)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
    found: bool,
}

impl StopStrings {
    /// Watches for these; empty ones are never found.
    pub fn new(stops: &[String]) -> Self {
        Self {
            stops: stops
                .iter()
                .filter(|stop| !stop.is_empty())
                .cloned()
                .collect(),
            held: String::new(),
            found: false,
        }
    }

    /// Takes the next piece and returns the text that is certain to stand before any of the
    /// strings.
    pub fn push(&mut self, piece: &str) -> String {
        if self.found {
            return String::new();
        }
        self.held.push_str(piece);
        // The one that is complete first; of several that end there the longest.
        let ends = self.stops.iter().filter_map(|stop| {
            self.held
                .find(stop.as_str())
                .map(|start| (start + stop.len(), start))
        });
        if let Some((_, start)) = ends.min() {
            self.found = true;
            self.held.truncate(start);
            return std::mem::take(&mut self.held);
        }
        let may_begin = |start: &usize| {
            self.stops
                .iter()
                .any(|stop| stop.starts_with(&self.held[*start..]))
        };
        let starts = self.held.char_indices().map(|(start, _)| start);
        let kept = starts
            .into_iter()
            .find(may_begin)
            .unwrap_or(self.held.len());
        let rest = self.held.split_off(kept);
        std::mem::replace(&mut self.held, rest)
    }

    /// Whether one of the strings was found.
    pub fn found(&self) -> bool {
        self.found
    }

    /// What was held back, at the end of the text.
    pub fn finish(self) -> String {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let stops: Vec<String> = stops.iter().map(ToString::to_string).collect();
        let mut watch = StopStrings::new(&stops);
        let mut text: String = pieces.iter().map(|piece| watch.push(piece)).collect();
        let found = watch.found();
        text += &watch.finish();
        (text, found)
    }

    #[test]
    fn text_ends_before_the_string_that_is_complete_first() {
        assert_eq!(cut(&["END"], &["a E", "N", "D b"]), ("a ".into(), true));
        assert_eq!(cut(&["END"], &["a E", "N", "E"]), ("a ENE".into(), false));
        assert_eq!(cut(&["cd", "abcde"], &["abcdef"]), ("ab".into(), true));
        assert_eq!(cut(&["d", "abcd"], &["xabcd"]), ("x".into(), true));
        assert_eq!(cut(&["aab"], &["a", "a", "a", "b"]), ("a".into(), true));
        assert_eq!(cut(&["", "é"], &["caf", "é!"]), ("caf".into(), true));
    }

    #[test]
    fn what_may_begin_a_string_is_held_back_and_nothing_else() {
        let mut watch = StopStrings::new(&["\n\n".into(), "User:".into()]);
        assert_eq!(
            (watch.push("one\n"), watch.push("Us")),
            ("one".into(), "\n".into())
        );
        assert_eq!(
            (watch.push("ed "), watch.push("User"), watch.push(":x")),
            ("Used ".into(), String::new(), String::new())
        );
        assert!(watch.found() && watch.push("more").is_empty());
    }

    proptest! {
        #[test]
        fn where_pieces_end_does_not_matter(text in "[abé]{0,24}", stops in prop::collection::vec("[abé]{1,4}", 0..4), ends in prop::collection::vec(0usize..24, 0..8)) {
            let mut ends: Vec<usize> = ends.into_iter().filter(|end| text.is_char_boundary(*end)).chain([0, text.len()]).collect();
            ends.sort_unstable();
            let pieces: Vec<&str> = ends.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let whole = cut(&stops, &[&text]);
            prop_assert_eq!(cut(&stops, &pieces), whole.clone());
            prop_assert!(text.starts_with(&whole.0));
            prop_assert_eq!(whole.1, stops.iter().any(|stop| text.contains(stop)));
        }
    }
}
