//! A matrix of one number per (layer, token).

/// A matrix `[layers, tokens]` of f32.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    /// A row of all tokens for each layer.
    rows: Vec<Vec<f32>>,
}

impl Grid {
    /// All zeros.
    pub fn zeros(layers: usize, tokens: usize) -> Grid {
        Grid { rows: vec![vec![0.0; tokens]; layers] }
    }

    /// The value of token `t` at layer `l`.
    ///
    /// # Panics
    /// When `l` or `t` is out of range.
    pub fn at(&self, l: usize, t: usize) -> f32 {
        self.rows[l][t]
    }

    /// All tokens of layer `l`.
    ///
    /// # Panics
    /// When `l` is out of range.
    pub fn row(&self, l: usize) -> &[f32] {
        &self.rows[l]
    }

    /// All tokens of layer `l`, for writing.
    ///
    /// # Panics
    /// When `l` is out of range.
    pub fn row_mut(&mut self, l: usize) -> &mut [f32] {
        &mut self.rows[l]
    }

    /// All layers of token `t`.
    ///
    /// # Panics
    /// When `t` is out of range.
    pub fn column(&self, t: usize) -> Vec<f32> {
        (0..self.layers()).map(|l| self.at(l, t)).collect()
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.rows.len()
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.rows.first().map_or(0, Vec::len)
    }

    /// The rows of all layers.
    pub(crate) fn rows_mut(&mut self) -> impl Iterator<Item = &mut Vec<f32>> {
        self.rows.iter_mut()
    }

    /// Truncates the rows to `tokens`, or extends them with zeros.
    pub(crate) fn resize(&mut self, tokens: usize) {
        self.rows.iter_mut().for_each(|row| row.resize(tokens, 0.0));
    }
}
