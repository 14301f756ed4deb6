//! Reference results of scikit-learn and numpy, from `tests/data/explain/`.

use serde::Deserialize;

#[derive(Deserialize)]
pub(super) struct Fixture {
    points: Vec<Vec<f32>>,
    pub kinds: Vec<bool>,
    pub explained_variance_ratio: Vec<f64>,
    pub components: Vec<Vec<f32>>,
    pub silhouette: f64,
    pub balanced_accuracy: f64,
    pub decision_of_second_half: Vec<f64>,
    pub perplexity: f64,
    pub joint_probabilities_of_first: Vec<f64>,
    pub kl_divergence: f64,
    pub entropy: f64,
}

impl Fixture {
    pub fn rows(&self) -> Vec<&[f32]> {
        self.points.iter().map(Vec::as_slice).collect()
    }
}

#[allow(clippy::unwrap_used)]
pub(super) fn fixture() -> Fixture {
    serde_json::from_str(include_str!("../../tests/data/explain/sklearn.json")).unwrap()
}
