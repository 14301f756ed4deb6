//! From which layer on future sinks can be separated from other tokens: "Clustering"
//! (docs/definitions.md), paper Fig. 6.

use std::collections::BTreeSet;

use fathom_backend::Backend;
use fathom_model::{Result, Site};
use nalgebra::DMatrix;
use serde::{Deserialize, Serialize};

use super::analysis::Analyzer;
use super::collect::Collector;
use super::driver::advanced;
use super::gram::squared_distances;
use super::parts::{decode, encode};
use super::pass::{Observer, Rows};
use super::scanned::{Others, ScannedRun, ScannedTrace, Token, sample, secondary_tokens};
use super::separation::{separability, silhouette};
use super::tsne::tsne;
use super::{Analysis, AnalysisResult, ExplainProgress, Inputs};

/// Future secondary sinks against other tokens, layer by layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Clusters {
    /// The tokens.
    pub points: Vec<ClusterPoint>,
    /// By site (`resid_post`, `attn_out`, `mlp_out`), then layer. Empty with fewer than 5 of either
    /// kind.
    pub places: Vec<ClusterPlace>,
    /// For each l_start and site, the layer from which on future sinks are separable from other
    /// tokens.
    #[serde(default)]
    pub decisions: Vec<Decision>,
}

/// Future sinks of one l_start against as many other tokens, at one site.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// First layer of the sinks.
    pub l_start: usize,
    /// How many there are; at least 5.
    pub sinks: usize,
    /// `resid_post`, `attn_out` or `mlp_out`.
    pub site: String,
    /// The decision layer: the first of the layers up to l_start from which on separability stays
    /// at least [`Decision::SEPARABLE`]. Absent if it is lower at l_start itself.
    pub layer: Option<usize>,
    /// By layer, from 0 to l_start + 1.
    pub curve: Vec<Separation>,
}

/// How far future sinks and other tokens are apart at one layer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Separation {
    /// The layer.
    pub layer: usize,
    /// See [`ClusterPlace::silhouette`].
    pub silhouette: f64,
    /// See [`ClusterPlace::separability`].
    pub separability: f64,
}

impl Decision {
    /// The separability at which the two kinds count as separate.
    pub const SEPARABLE: f64 = 0.9;

    /// See [`Decision::layer`].
    fn made_at(curve: &[Separation], l_start: usize) -> Option<usize> {
        let before = curve.iter().rev().skip_while(|place| place.layer > l_start);
        before
            .take_while(|place| place.separability >= Decision::SEPARABLE)
            .last()
            .map(|place| place.layer)
    }
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
    /// The layer at which it becomes a sink; absent if it does not.
    pub l_start: Option<usize>,
    /// Whether one of the compared sinks has the same token id.
    pub id_of_a_sink: bool,
}

/// The tokens at one site of a layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterPlace {
    /// `resid_post`, `attn_out` or `mlp_out`.
    pub site: String,
    /// The layer.
    pub layer: usize,
    /// Mean silhouette of sinks against others, Euclidean, from -1 to 1.
    pub silhouette: f64,
    /// Balanced accuracy of a linear (ridge) classifier in 5-fold cross-validation; 0.5 is chance.
    pub separability: f64,
    /// t-SNE coordinates, in the order of `points`.
    pub tsne: Vec<[f32; 2]>,
}

impl AnalysisResult for Clusters {
    const ANALYSIS: Analysis = Analysis::Clusters;
}

/// Where tokens are compared.
const SITES: [Site; 3] = [Site::ResidPost, Site::AttnOut, Site::MlpOut];
/// Maximum number of tokens of each kind; the cost of t-SNE is quadratic in it.
const MOST: usize = 128;
/// Minimum number of tokens of each kind: one per fold of the cross-validation.
const FEWEST: usize = 5;

/// Collects the tokens' vectors.
pub(super) struct ClustersAnalyzer {
    points: Vec<ClusterPoint>,
    layers: usize,
    collector: Collector,
}

impl Analyzer for ClustersAnalyzer {
    type Output = Clusters;
    const HELP: &'static str =
        "t-SNE, silhouette and linear separability of future sinks by layer and site";

    fn new(run: &ScannedRun<'_>) -> ClustersAnalyzer {
        let (traces, options) = (&run.traces, &run.options);
        let most = options.max_sinks.min(MOST);
        let sinks = sample(secondary_tokens(traces), most, options.seed);
        let others = Others::of(traces, &sinks, options.seed);
        // Up to one layer after the last l_start; later layers come after every decision.
        let last = traces.iter().flat_map(ScannedTrace::secondary).map(crate::Sink::l_start).max();
        let layers = last.map_or(0, |last| (last + 2).min(run.layers));
        let places = SITES.iter().flat_map(|site| (0..layers).map(|layer| (*site, layer)));
        let tokens = sinks.iter().chain(&others.tokens).copied().collect();
        let collector = Collector::new(tokens, places);

        let ids: Vec<u32> = sinks.iter().map(|(trace, t)| traces[*trace].ids[*t]).collect();
        let point = |&(trace, position): &Token| {
            let token_id = traces[trace].ids[position];
            let sink = traces[trace].secondary().find(|sink| sink.position == position);
            ClusterPoint {
                trace,
                position,
                token_id,
                l_start: sink.map(crate::Sink::l_start),
                id_of_a_sink: ids.contains(&token_id),
            }
        };
        let points = collector.tokens().iter().map(point).collect();
        ClustersAnalyzer { points, layers, collector }
    }

    fn observers<B: Backend>(&mut self) -> Vec<&mut dyn Observer<B>> {
        vec![self]
    }

    fn finish<B: Backend>(
        self,
        _: &Inputs<'_, B>,
        progress: &mut dyn ExplainProgress,
    ) -> Result<Clusters> {
        let kinds = self.kinds();
        let layers = if self.enough() { self.layers } else { 0 };
        let levels = if self.enough() { self.levels() } else { Vec::new() };
        progress.start("clustering", "places", SITES.len() * layers);
        let (mut places, mut decisions) = (Vec::new(), Vec::new());
        for site in SITES {
            let mut curves: Vec<Vec<Separation>> = vec![Vec::new(); levels.len()];
            for layer in 0..layers {
                let distances = squared_distances(&self.collector.rows(site, layer));
                let perplexity = ((kinds.len() - 1) as f64 / 3.0).min(30.0);
                let (coordinates, _) = tsne(&distances, perplexity);
                places.push(ClusterPlace {
                    site: site.to_string(),
                    layer,
                    silhouette: silhouette(&distances, &kinds),
                    separability: separability(&distances, &kinds),
                    tsne: coordinates.into_iter().map(|point| point.map(|x| x as f32)).collect(),
                });
                for (level, curve) in levels.iter().zip(&mut curves) {
                    if layer <= level.l_start + 1 {
                        curve.push(level.separation(layer, &distances, &kinds));
                    }
                }
                advanced(progress, 1)?;
            }
            decisions.extend(levels.iter().zip(curves).map(|(level, curve)| Decision {
                l_start: level.l_start,
                sinks: level.points.len() / 2,
                site: site.to_string(),
                layer: Decision::made_at(&curve, level.l_start),
                curve,
            }));
        }
        decisions.sort_by_key(|decision| decision.l_start); // stable: sites stay in their order
        Ok(Clusters { points: self.points, places, decisions })
    }
}

impl ClustersAnalyzer {
    /// Whether each point is a future sink.
    fn kinds(&self) -> Vec<bool> {
        self.points.iter().map(|point| point.l_start.is_some()).collect()
    }

    fn enough(&self) -> bool {
        let kinds = self.kinds();
        let sinks = kinds.iter().filter(|kind| **kind).count();
        sinks.min(kinds.len() - sinks) >= FEWEST
    }

    /// The sinks of each l_start that has enough of them.
    fn levels(&self) -> Vec<Level> {
        let starts: BTreeSet<usize> =
            self.points.iter().filter_map(|point| point.l_start).collect();
        starts.into_iter().filter_map(|l_start| self.level(l_start)).collect()
    }

    /// The sinks of one l_start, and as many other tokens, preferably of the same ids. `None` if
    /// there are too few of either.
    fn level(&self, l_start: usize) -> Option<Level> {
        let of = |wanted: Option<usize>| {
            let points = self.points.iter().enumerate();
            points.filter(move |(_, point)| point.l_start == wanted)
        };
        let ids: BTreeSet<u32> = of(Some(l_start)).map(|(_, point)| point.token_id).collect();
        let mut points: Vec<usize> = of(Some(l_start)).map(|(index, _)| index).collect();
        let sinks = points.len();
        let ids = &ids;
        let same = |same: bool| of(None).filter(move |(_, p)| ids.contains(&p.token_id) == same);
        points.extend(same(true).chain(same(false)).map(|(index, _)| index).take(sinks));
        (sinks >= FEWEST && points.len() == 2 * sinks).then_some(Level { l_start, points })
    }
}

/// Sinks of one l_start, and as many other tokens.
struct Level {
    l_start: usize,
    /// Indices among all points.
    points: Vec<usize>,
}

impl Level {
    fn separation(&self, layer: usize, distances: &DMatrix<f64>, kinds: &[bool]) -> Separation {
        let n = self.points.len();
        let own = DMatrix::from_fn(n, n, |i, j| distances[(self.points[i], self.points[j])]);
        let kinds: Vec<bool> = self.points.iter().map(|index| kinds[*index]).collect();
        Separation {
            layer,
            silhouette: silhouette(&own, &kinds),
            separability: separability(&own, &kinds),
        }
    }
}

impl<B: Backend> Observer<B> for ClustersAnalyzer {
    fn name(&self) -> &'static str {
        Analysis::Clusters.name()
    }

    fn begin(&mut self, trace: &ScannedTrace<'_>) {
        self.collector.begin(trace);
    }

    fn wants(&self, site: Site, layer: usize) -> bool {
        self.collector.wants(site, layer)
    }

    fn read(&mut self, site: Site, layer: usize, rows: &Rows<'_>) {
        self.collector.read(site, layer, rows);
    }

    fn part(&mut self) -> Result<Vec<u8>> {
        encode(&self.collector.part())
    }

    fn add(&mut self, part: &[u8]) -> bool {
        decode(part).map(|rows| self.collector.add(rows)).is_some()
    }
}
