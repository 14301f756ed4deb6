//! Storage of the attention matrix's column sums.

/// `Σ_t a[h, t, k]` of one sequence, for every layer, head h and key k.
pub struct ColumnSums {
    /// `[layer][head][key]`, keys padded to whole blocks.
    pub(super) sums: Vec<Vec<Vec<f64>>>,
    /// `Σ_t a[h, t, k] · log₂ a[h, t, k]`, as `sums`; no layers if not wanted.
    pub(super) entropies: Vec<Vec<Vec<f64>>>,
}

impl ColumnSums {
    pub(crate) fn new(layers: usize, heads: usize, entropy: bool) -> ColumnSums {
        let empty = |layers| vec![vec![Vec::new(); heads]; layers];
        ColumnSums { sums: empty(layers), entropies: empty(if entropy { layers } else { 0 }) }
    }

    pub(crate) fn of_layer(&self, layer: usize, tokens: usize) -> Vec<f64> {
        let heads = &self.sums[layer];
        let head = |sums: &Vec<f64>| {
            (0..tokens).map(|key| sums.get(key).copied().unwrap_or(0.0)).collect::<Vec<_>>()
        };
        heads.iter().flat_map(head).collect()
    }

    /// The entropies of the rows in nats, summed over the rows, by head.
    pub(crate) fn entropies(&self, layer: usize) -> Vec<f64> {
        let of_head = |terms: &Vec<f64>| -terms.iter().sum::<f64>() * std::f64::consts::LN_2;
        self.entropies.get(layer).map_or(Vec::new(), |heads| heads.iter().map(of_head).collect())
    }
}
