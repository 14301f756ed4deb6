//! Keys of a sequence that are hidden from later queries.

/// Until when each key of a sequence is visible, layer by layer: Hidden keys (docs/definitions.md).
///
/// A query at position t that would see key p by causality and window sees it only if t <
/// `until[p]`, or if t = p: a query always sees its own key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyMask {
    /// `[layers][keys]`; keys beyond the end are visible forever.
    until: Vec<Vec<usize>>,
}

impl KeyMask {
    /// The bound of a key that is never hidden.
    pub const NEVER: usize = usize::MAX;

    /// A mask of these bounds `[layers][keys]`. Layers and keys beyond the end are never hidden.
    pub fn new(until: Vec<Vec<usize>>) -> KeyMask {
        KeyMask { until }
    }

    /// The bounds of a layer's keys `[keys]`. Keys beyond the end are never hidden.
    pub fn until(&self, layer: usize) -> &[usize] {
        self.until.get(layer).map_or(&[], Vec::as_slice)
    }

    /// Hides a key of a layer from queries at position `from` and later, if it is not hidden
    /// earlier.
    pub fn hide(&mut self, layer: usize, key: usize, from: usize) {
        if self.until.len() <= layer {
            self.until.resize_with(layer + 1, Vec::new);
        }
        let until = &mut self.until[layer];
        if until.len() <= key {
            until.resize(key + 1, KeyMask::NEVER);
        }
        until[key] = until[key].min(from);
    }

    /// The position of the first query that does not see some earlier key; [`KeyMask::NEVER`] if
    /// all do.
    pub fn first_query(&self) -> usize {
        let keys = self.until.iter().flat_map(|layer| layer.iter().enumerate());
        keys.map(|(key, until)| (*until).max(key + 1)).min().unwrap_or(KeyMask::NEVER)
    }

    /// Whether a key that is no later than the query is hidden from it.
    pub fn hides(&self, layer: usize, key: usize, query: usize) -> bool {
        key != query && self.until(layer).get(key).is_some_and(|until| *until <= query)
    }
}
