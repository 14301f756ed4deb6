//! Storage of the attention matrix's column sums.

/// `Σ_t a[h, t, k]` of one sequence, for every layer, head h and key k.
pub struct ColumnSums {
    /// `[layer][head][key]`, keys padded to whole blocks.
    pub(super) sums: Vec<Vec<Vec<f64>>>,
}

impl ColumnSums {
    pub(crate) fn new(layers: usize, heads: usize) -> ColumnSums {
        ColumnSums { sums: vec![vec![Vec::new(); heads]; layers] }
    }

    pub(crate) fn of_layer(&self, layer: usize, tokens: usize) -> Vec<f64> {
        let heads = &self.sums[layer];
        let head = |sums: &Vec<f64>| {
            (0..tokens).map(|key| sums.get(key).copied().unwrap_or(0.0)).collect::<Vec<_>>()
        };
        heads.iter().flat_map(head).collect()
    }
}
