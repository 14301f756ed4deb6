//! Massive activations of a row: Four measures (docs/definitions.md).

/// The massive activations of a row x: the components with |xᵢ| > 100 and |xᵢ| > 1000 · median |x|
/// (Sun et al. 2024, arXiv:2402.17762). The median of an even number of values is the mean of the
/// two in the middle. All in f32.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Massive {
    /// How many there are.
    pub count: usize,
    /// Index and value of those with the largest |xᵢ|, at most [`Massive::LISTED`], by index. Of
    /// equal ones, those with the lowest index.
    pub largest: Vec<(usize, f32)>,
}

impl Massive {
    /// A massive activation is larger than this.
    pub const ABOVE: f32 = 100.0;
    /// A massive activation is larger than this many times the median of the row.
    pub const TIMES_MEDIAN: f32 = 1000.0;
    /// Maximum number of components in [`Massive::largest`].
    pub const LISTED: usize = 8;
    /// Maximum length of [`Massive::numbers`].
    pub const NUMBERS: usize = 1 + 2 * Massive::LISTED;

    /// As f32, the form in which a device returns it: the count, then index and value of each
    /// listed component. Indices are below 2²⁴, so they are exact.
    pub fn numbers(&self) -> impl Iterator<Item = f32> {
        let listed = self.largest.iter().flat_map(|(index, value)| [*index as f32, *value]);
        std::iter::once(self.count as f32).chain(listed)
    }

    /// The inverse of [`Massive::numbers`]: `number(i)` is the i-th number. Numbers after those of
    /// the listed components are not read.
    pub fn from_numbers(number: impl Fn(usize) -> f32) -> Massive {
        let count = number(0) as usize;
        let listed = 0..count.min(Massive::LISTED);
        let largest = listed.map(|i| (number(1 + 2 * i) as usize, number(2 + 2 * i)));
        Massive { count, largest: largest.collect() }
    }
}
