//! From which layer on future sinks stand apart from other tokens (definition 2.7, paper Fig. 6).

use fathom_model::Site;
use serde::{Deserialize, Serialize};

use super::collect::Collector;
use super::gram::squared_distances;
use super::separation::{separability, silhouette};
use super::subjects::{Others, Subject, Token, sample};
use super::tsne::tsne;
use super::{Analysis, AnalysisResult, ExplainOptions};

/// Future secondary sinks against other tokens, layer by layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Clusters {
    /// The tokens.
    pub points: Vec<ClusterPoint>,
    /// By site (`resid_post`, `attn_out`, `mlp_out`), then layer. Empty with fewer than 5 of either kind.
    pub places: Vec<ClusterPlace>,
}

/// A token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterPoint {
    /// 0-based number of the trace in the run.
    pub trace: usize,
    /// Position in the trace.
    pub position: usize,
    /// The token there.
    pub token_id: u32,
    /// Where it becomes a sink; absent where it does not.
    pub l_start: Option<usize>,
    /// Whether some sink has the same token id.
    pub id_of_a_sink: bool,
}

/// The tokens at one place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterPlace {
    /// `resid_post`, `attn_out` or `mlp_out`.
    pub site: String,
    /// The layer.
    pub layer: usize,
    /// Mean silhouette of sinks against others, -1 to 1, Euclidean.
    pub silhouette: f64,
    /// Accuracy of a linear (ridge) classifier in 5-fold cross-validation, kinds weighing the same; 0.5 is chance.
    pub separability: f64,
    /// t-SNE coordinates, in the order of `points`.
    pub tsne: Vec<[f32; 2]>,
}

impl AnalysisResult for Clusters {
    const ANALYSIS: Analysis = Analysis::Clusters;
}

/// Where tokens are compared.
const SITES: [Site; 3] = [Site::ResidPost, Site::AttnOut, Site::MlpOut];
/// Tokens of each kind at most: t-SNE takes the square of it.
const MOST: usize = 128;
/// Tokens of each kind below which nothing can be told.
const FEWEST: usize = 5;

/// Gathers the tokens' vectors.
pub(super) struct ClustersObserver {
    points: Vec<ClusterPoint>,
    layers: usize,
    pub collector: Collector,
}

impl ClustersObserver {
    pub fn new(
        subjects: &[Subject<'_>],
        layers: usize,
        options: ExplainOptions,
    ) -> ClustersObserver {
        let tokens = |subject: &Subject<'_>| {
            let number = subject.number;
            subject.secondary().map(move |sink| (number, sink.position)).collect::<Vec<_>>()
        };
        let most = options.max_sinks.min(MOST);
        let all: Vec<Token> = subjects.iter().flat_map(tokens).collect();
        let sinks = sample(all, most, options.seed);
        let others = Others::of(subjects, &sinks, options.seed);
        // A layer behind the last at which a sink is made, there is nothing left to decide.
        let last = subjects.iter().flat_map(Subject::secondary).map(crate::Sink::l_start).max();
        let layers = last.map_or(0, |last| (last + 2).min(layers));
        let places = SITES.iter().flat_map(|site| (0..layers).map(|layer| (*site, layer)));
        let tokens = sinks.iter().chain(&others.tokens).copied().collect();
        let collector = Collector::new(tokens, places);

        let ids: Vec<u32> = sinks.iter().map(|(trace, t)| subjects[*trace].ids[*t]).collect();
        let point = |&(trace, position): &Token| {
            let token_id = subjects[trace].ids[position];
            let sink = subjects[trace].secondary().find(|sink| sink.position == position);
            ClusterPoint {
                trace,
                position,
                token_id,
                l_start: sink.map(crate::Sink::l_start),
                id_of_a_sink: ids.contains(&token_id),
            }
        };
        let points = collector.tokens().iter().map(point).collect();
        ClustersObserver { points, layers, collector }
    }

    pub fn finish(self) -> Clusters {
        let kinds: Vec<bool> = self.points.iter().map(|point| point.l_start.is_some()).collect();
        let sinks = kinds.iter().filter(|kind| **kind).count();
        let enough = sinks.min(kinds.len() - sinks) >= FEWEST;
        let place = |site: Site, layer: usize| {
            let distances = squared_distances(&self.collector.rows(site, layer));
            let perplexity = ((kinds.len() - 1) as f64 / 3.0).min(30.0);
            let (coordinates, _) = tsne(&distances, perplexity);
            ClusterPlace {
                site: site.to_string(),
                layer,
                silhouette: silhouette(&distances, &kinds),
                separability: separability(&distances, &kinds),
                tsne: coordinates.into_iter().map(|point| point.map(|x| x as f32)).collect(),
            }
        };
        let layers = if enough { self.layers } else { 0 };
        let places = SITES.into_iter().flat_map(|site| (0..layers).map(move |l| (site, l)));
        let places = places.map(|(site, layer)| place(site, layer)).collect();
        Clusters { points: self.points, places }
    }
}
