//! What each analysis of a run found, in a sentence.

use std::path::Path;

use fathom_model::Result;
use fathom_sinks::explain::{
    Analysis, AnalysisResult, Clusters, Effect, Entropy, LevelChange, Neurons, Pca, Scope, Share,
    Stage, Stages, Suppress, Swap, read,
};

use crate::number::plural;

/// What the stored result of an analysis of the run in `run_dir` says; `None` where there is none.
///
/// # Errors
/// A result that cannot be read.
pub fn finding(run_dir: &Path, analysis: Analysis) -> Result<Option<String>> {
    fn of<T: AnalysisResult>(run_dir: &Path, say: fn(&T) -> String) -> Result<Option<String>> {
        Ok(read::<T>(run_dir)?.map(|stored| say(&stored.result)))
    }
    match analysis {
        Analysis::Stages => of(run_dir, stages),
        Analysis::Pca => of(run_dir, pca),
        Analysis::Clusters => of(run_dir, clusters),
        Analysis::Swap => of(run_dir, swap),
        Analysis::Effect => of(run_dir, effect),
        Analysis::Entropy => of(run_dir, entropy),
        Analysis::Suppress => of(run_dir, suppress),
        Analysis::Neurons => of(run_dir, neurons),
    }
}

const NO_SECONDARY: &str = "the run has no secondary sinks";

fn stages(stages: &Stages) -> String {
    let most = stages.summaries.iter().max_by_key(|summary| (summary.cosine.n, summary.layer));
    let Some(l_start) = most.map(|summary| summary.l_start) else {
        return "the run has no sinks beside the reference".to_owned();
    };
    let median = |stage: Stage| {
        let mut here = stages.summaries.iter();
        let found = here.find(|s| (s.l_start, s.layer, s.stage) == (l_start, l_start, stage));
        found.map_or(f64::NAN, |summary| summary.cosine.median)
    };
    let sinks = most.map_or(0, |summary| summary.cosine.n);
    format!(
        "{} made at layer {l_start}: cosine with the reference {:.2} at mlp_in, {:.2} at mlp_out \
         ({:.2} with its state); medians",
        plural(sinks, "sink"),
        median(Stage::MlpIn),
        median(Stage::MlpOut),
        median(Stage::MlpOutToState),
    )
}

fn pca(pca: &Pca) -> String {
    let layer = |layer: &fathom_sinks::explain::LayerPca| {
        let first: f64 = layer.explained.iter().take(8).sum();
        let norm = |component: &fathom_sinks::explain::ComponentSweep| {
            component.points.iter().map(|point| point.norm).fold(0.0, f32::max)
        };
        let strongest = layer.components.iter().max_by(|a, b| norm(a).total_cmp(&norm(b)));
        let driven = strongest.map_or(String::new(), |component| {
            let (number, norm) = (component.component, norm(component));
            format!(
                "; swept, PC {number} drives mlp_out to {norm:.0} (the sinks' {:.0})",
                layer.sink_norm
            )
        });
        format!("layer {}: 8 components hold {:.0}% of mlp_in{driven}", layer.layer, 100.0 * first)
    };
    or_none(pca.layers.iter().map(layer))
}

fn clusters(clusters: &Clusters) -> String {
    if clusters.points.iter().all(|point| point.l_start.is_none()) {
        return NO_SECONDARY.to_owned();
    }
    let states = clusters.decisions.iter().filter(|decision| decision.site == "resid_post");
    let decided: Vec<String> = states
        .map(|decision| match decision.layer {
            Some(layer) => format!("of layer {} decided at layer {layer}", decision.l_start),
            None => format!("of layer {} never told apart", decision.l_start),
        })
        .collect();
    match decided.is_empty() {
        true => "too few sinks or other tokens to compare".to_owned(),
        false => format!("sinks {}", decided.join(", ")),
    }
}

fn swap(swap: &Swap) -> String {
    let most = swap.cells.iter().max_by_key(|cell| cell.suppressed.n);
    let Some(l_start) = most.map(|cell| cell.l_start) else { return NO_SECONDARY.to_owned() };
    let strongest = |site: &str| {
        let here =
            swap.cells.iter().filter(|cell| (cell.l_start, cell.site.as_str()) == (l_start, site));
        here.max_by(|a, b| a.suppressed.share.total_cmp(&b.suppressed.share))
    };
    let said = ["attn_out", "mlp_out"].into_iter().filter_map(|site| {
        let cell = strongest(site)?;
        let Share { share, low, high, .. } = cell.suppressed;
        if share == 0.0 {
            return Some(format!("{site} of any layer suppresses none"));
        }
        let [share, low, high] = [share, low, high].map(|share| 100.0 * share);
        Some(format!("{site} of layer {} suppresses {share:.0}% ({low:.0}–{high:.0})", cell.layer))
    });
    format!("sinks of layer {l_start}: replacing {}", said.collect::<Vec<_>>().join(", "))
}

fn effect(effect: &Effect) -> String {
    let line = effect.steepest_layer.and_then(|l| Some((l, effect.layers.get(l)?.line?)));
    let attention = match line {
        Some((layer, line)) => {
            let (slope, r2) = (line.slope, line.r2);
            format!("log score ratio rises by {slope:.2} a log norm at layer {layer} (R² {r2:.2})")
        }
        None if effect.sinks.is_empty() => return reference_alone(effect),
        None => "too few sinks or norms for a line".to_owned(),
    };
    let rho = effect.lifetime_rho.map(|rho| format!("; lifetime against norm ρ {rho:.2}"));
    attention + &rho.unwrap_or_default()
}

/// Of a run without secondary sinks.
fn reference_alone(effect: &Effect) -> String {
    let scores = effect.layers.iter().filter_map(|layer| Some((layer.layer, layer.reference?)));
    let drawn = scores.max_by(|a, b| a.1.total_cmp(&b.1)).map(|(layer, score)| {
        format!("; the reference draws most attention at layer {layer}: sink score {score:.3}")
    });
    NO_SECONDARY.to_owned() + &drawn.unwrap_or_default()
}

fn entropy(entropy: &Entropy) -> String {
    let whole = entropy.traces.iter().filter_map(|trace| {
        let mut series = trace.series.iter();
        series.find(|series| series.scope == Scope::WithPrompt)?.windows.last()
    });
    let mut sums: Vec<f64> = Vec::new();
    let mut traces = 0;
    for window in whole {
        sums.resize(window.entropy.len(), 0.0);
        sums.iter_mut().zip(&window.entropy).for_each(|(sum, value)| *sum += f64::from(*value));
        traces += 1;
    }
    let means = || sums.iter().map(|sum| sum / f64::from(traces)).enumerate();
    let (low, high) =
        (means().min_by(|a, b| a.1.total_cmp(&b.1)), means().max_by(|a, b| a.1.total_cmp(&b.1)));
    match (low, high) {
        (Some((l, low)), Some((h, high))) => {
            format!(
                "whole traces: lowest {low:.2} nats at layer {l}, highest {high:.2} at layer {h}; means"
            )
        }
        _ => "no trace has two tokens".to_owned(),
    }
}

fn suppress(suppress: &Suppress) -> String {
    let layer = |layer: &fathom_sinks::explain::SuppressedLayer| {
        let kl = layer.kl.map_or(0.0, |kl| kl.mean);
        let differ = layer.continuations.iter().filter(|one| one.differs_at.is_some()).count();
        format!(
            "layer {} clamped: {}; KL {kl:.4} nats, perplexity {} → {}, {differ} of {} \
             written differently",
            layer.layer,
            gone(layer.layer, &layer.levels),
            perplexity(layer.nll_before.exp()),
            perplexity(layer.nll_after.exp()),
            plural(layer.continuations.len(), "continuation"),
        )
    };
    or_none(suppress.layers.iter().map(layer))
}

fn neurons(neurons: &Neurons) -> String {
    let layer = |layer: &fathom_sinks::explain::LayerNeurons| {
        let ablation = &layer.ablation;
        format!(
            "layer {}: {:.0}% of the sink direction is written by {}; without them {}, perplexity {} → {}",
            layer.layer,
            100.0 * ablation.share,
            plural(ablation.neurons.len(), "neuron"),
            gone(layer.layer, &ablation.levels),
            perplexity(ablation.perplexity_before),
            perplexity(ablation.perplexity_after),
        )
    };
    or_none(neurons.layers.iter().map(layer))
}

/// How many of a layer's sinks are gone, and how many others.
fn gone(layer: usize, levels: &[LevelChange]) -> String {
    let sum = |own: bool, of: fn(&LevelChange) -> usize| -> usize {
        levels.iter().filter(|level| (level.l_start == layer) == own).map(of).sum()
    };
    let (before, left) = (sum(true, |l| l.before), sum(true, |l| l.gone));
    let (others, changed) = (sum(false, |l| l.before), sum(false, |l| l.gone + l.changed));
    format!("{left} of its {before} sinks gone, {changed} of {others} others affected")
}

fn perplexity(perplexity: f64) -> String {
    if perplexity < 1e6 { format!("{perplexity:.2}") } else { format!("{perplexity:.1e}") }
}

fn or_none(said: impl Iterator<Item = String>) -> String {
    let said: Vec<String> = said.collect();
    if said.is_empty() { NO_SECONDARY.to_owned() } else { said.join("; ") }
}
