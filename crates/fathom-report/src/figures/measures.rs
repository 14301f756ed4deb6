//! The four measures of a sink: where they agree, and massive activations.

use fathom_sinks::{Agreement, Combination, Measure};

use super::{Head, MaybeFigure};
use crate::figure::{Axis, Color, Dot, Figure, HeatCell, Mark, Panel, Scale, Series, Symbol};
use crate::number::{grouped, ranges};
use crate::run_data::RunData;
use crate::{agreement_table, massive_table, plural};

const AGREEMENT: Head = Head {
    name: "measures-agreement",
    title: "Where four measures of a sink agree",
    paper: "beyond the paper",
};
const MASSIVE: Head = Head {
    name: "measures-massive",
    title: "Massive activations",
    paper: "Sun et al. 2024, arXiv:2402.17762",
};
/// Maximum number of dimensions in the heat map.
const DIMS: usize = 16;

/// Why a run of an earlier version has no figures of measures.
pub(super) const NO_MEASURES: &str =
    "The run has no measures: it was scanned by an earlier version, and a new scan takes them.";

pub(super) fn agreement(run: &RunData) -> MaybeFigure {
    let Some(agreement) = &run.measures else { return Err(AGREEMENT.absent(NO_MEASURES, None)) };
    let some: Vec<_> = agreement.combinations.iter().filter(|c| !c.set.is_empty()).collect();
    if some.is_empty() {
        return Err(AGREEMENT.absent("No measure of a sink holds for any token.", None));
    }
    let measures =
        |of: &Combination| of.set.iter().map(Measure::name).collect::<Vec<_>>().join(" + ");
    let names: Vec<String> = (1..=some.len()).map(|i| i.to_string()).collect();
    let x = || Axis::new("combination of measures", Scale::Names(names.clone()));

    let most = some.iter().map(|c| c.pairs).max().unwrap_or(1);
    let scale = Scale::Log { min: 0.5, max: 1.5 * most as f64 };
    let mut counts =
        Panel::new("How often exactly these hold", x(), Axis::new("(token, layer), log", scale));
    let bar = |(i, c): (usize, &&Combination)| {
        let tip = format!(
            "{}\n{} (token, layer)\n{}",
            measures(c),
            grouped(c.pairs),
            plural(c.tokens, "token")
        );
        let x = i as f64;
        (x - 0.4, x + 0.4, 0.5, Dot::new(x - 0.4, c.pairs as f64, tip))
    };
    counts.marks.push(Mark::Bars { series: 0, bars: some.iter().enumerate().map(bar).collect() });

    let rows: Vec<Measure> = Measure::ALL.into_iter().rev().collect(); // the first one on top
    let labels = rows.iter().map(|measure| short_name(*measure).to_owned()).collect();
    let mut which = Panel::new("Which measures", x(), Axis::new("", Scale::Names(labels)));
    let cells = some.iter().enumerate().flat_map(|(i, c)| {
        rows.iter().enumerate().map(move |(y, measure)| {
            let holds = c.set.contains(*measure);
            let tip =
                format!("{}: {}", measure.name(), if holds { "holds" } else { "does not hold" });
            HeatCell {
                dot: Dot::new(i as f64, y as f64, tip),
                shade: if holds { 0.9 } else { 0.05 },
                text: String::new(),
                link: None,
            }
        })
    });
    which.marks.push(Mark::Cells(cells.collect()));
    Ok(Figure {
        head: AGREEMENT,
        reading: "A token counts as a sink at a layer if it is aligned with the reference within a \
                  phase, if a head's sink score of it is above 0.3, if its hidden state has \
                  massive activations, or if its norm is large. Left: how often exactly these \
                  measures hold together. Right: which ones, column by column.",
        findings: findings(agreement),
        legend: vec![Series::new("(token, layer)", Color::Blue, Symbol::Square)],
        panels: vec![counts, which],
        columns: 2,
        moving: None,
        quotes: Vec::new(),
        data: agreement_table(&[(&run.name, agreement)]),
    })
}

/// Labels that fit beside an axis.
fn short_name(measure: Measure) -> &'static str {
    match measure {
        Measure::Alignment => "aligned",
        Measure::Attention => "drawing",
        Measure::Massive => "massive",
        Measure::Norm => "norm",
    }
}

fn findings(agreement: &Agreement) -> Vec<String> {
    let holds = |measure| {
        let with = agreement.combinations.iter().filter(move |c| c.set.contains(measure));
        with.map(|c| c.pairs).sum::<usize>()
    };
    let both = agreement.combinations.iter().filter(|c| c.set.contains(Measure::Alignment));
    let shared = |measure| {
        let both = both.clone().filter(|c| c.set.contains(measure));
        format!("{} {}", grouped(both.map(|c| c.pairs).sum()), measure_phrase(measure))
    };
    let others = Measure::ALL.into_iter().skip(1);
    let others = others.filter(|m| *m != Measure::Attention || agreement.attention);
    let mut findings = vec![format!(
        "Of {} (token, layer), {} are aligned with the reference; of these {}.",
        grouped(agreement.pairs()),
        grouped(holds(Measure::Alignment)),
        others.map(shared).collect::<Vec<_>>().join(", "),
    )];
    if !agreement.attention {
        findings.push("Attention was not measured: a scan with --attention does.".to_owned());
    }
    let near_end: usize = agreement
        .combinations
        .iter()
        .filter(|c| c.set.contains(Measure::Attention))
        .map(|c| c.near_end)
        .sum();
    if near_end > 0 {
        findings.push(format!(
            "{} of {} (token, layer) that draw attention are among the last {} tokens of a trace, \
             which few positions attend to.",
            grouped(near_end),
            grouped(holds(Measure::Attention)),
            Agreement::FEW_LATER
        ));
    }
    findings
}

fn measure_phrase(measure: Measure) -> &'static str {
    match measure {
        Measure::Alignment => "are aligned",
        Measure::Attention => "draw attention",
        Measure::Massive => "have massive activations",
        Measure::Norm => "have a large norm",
    }
}

pub(super) fn massive(run: &RunData) -> MaybeFigure {
    let Some(agreement) = &run.measures else { return Err(MASSIVE.absent(NO_MEASURES, None)) };
    let dims: Vec<_> = agreement.massive.iter().take(DIMS).collect();
    if dims.is_empty() {
        return Err(MASSIVE.absent("No hidden state has a massive activation.", None));
    }
    let most = dims.iter().flat_map(|dim| dim.layers.values()).map(|at| at.tokens).max();
    let most = most.unwrap_or(1);
    // The dimension with the most tokens is on top.
    let names = dims.iter().rev().map(|dim| dim.dim.to_string()).collect();
    let mut panel = Panel::new(
        format!("{} of the residual stream", plural(agreement.massive.len(), "dimension")),
        Axis::layers(run.layers()),
        Axis::new("dimension", Scale::Names(names)),
    );
    let cells = dims.iter().rev().enumerate().flat_map(|(y, dim)| {
        dim.layers.iter().map(move |(layer, at)| {
            let tip = format!(
                "dimension {}\nlayer {layer}\n{}\nlargest value {:.1}",
                dim.dim,
                plural(at.tokens, "token"),
                at.largest
            );
            HeatCell {
                dot: Dot::new(*layer as f64, y as f64, tip),
                shade: (1.0 + at.tokens as f64).ln() / (1.0 + most as f64).ln(),
                text: String::new(),
                link: None,
            }
        })
    });
    panel.marks.push(Mark::Cells(cells.collect()));
    panel.height = 110.0 + 18.0 * dims.len() as f64;
    let finding = dims.iter().take(3).map(|dim| {
        let layers: Vec<usize> = dim.layers.keys().copied().collect();
        format!("{} ({}, layers {})", dim.dim, plural(dim.tokens, "token"), ranges(&layers))
    });
    Ok(Figure {
        head: MASSIVE,
        reading: "Components of hidden states above 100 and above 1000 times the median of the \
                  token's components, in absolute value, by dimension and layer. Brighter cells \
                  have more tokens, on a logarithmic scale.",
        findings: vec![format!(
            "Most tokens have them in dimensions {}.",
            finding.collect::<Vec<_>>().join(", ")
        )],
        legend: Vec::new(),
        panels: vec![panel],
        columns: 1,
        moving: None,
        quotes: Vec::new(),
        data: massive_table(&[(&run.name, agreement)]),
    })
}
