//! A matrix of one number per (layer, token).

/// A matrix `[layers, tokens]` of f32, layer-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    values: Vec<f32>,
    tokens: usize,
}

impl Grid {
    /// All zeros.
    pub fn zeros(layers: usize, tokens: usize) -> Grid {
        Grid { values: vec![0.0; layers * tokens], tokens }
    }

    /// The value of token `t` at layer `l`.
    ///
    /// # Panics
    /// When `l` or `t` is out of range.
    pub fn at(&self, l: usize, t: usize) -> f32 {
        self.row(l)[t]
    }

    /// All tokens of layer `l`.
    ///
    /// # Panics
    /// When `l` is out of range.
    pub fn row(&self, l: usize) -> &[f32] {
        &self.values[l * self.tokens..(l + 1) * self.tokens]
    }

    /// All tokens of layer `l`, for writing.
    ///
    /// # Panics
    /// When `l` is out of range.
    pub fn row_mut(&mut self, l: usize) -> &mut [f32] {
        &mut self.values[l * self.tokens..(l + 1) * self.tokens]
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
        self.values.len().checked_div(self.tokens).unwrap_or(0)
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}
