//! What changes when keys are dropped from the cache.

use fathom_sinks::explain::{Evict, Evicted, EvictionPolicy};

use super::changes::{capital, perplexity};
use super::{AnalysisFigure, Head, MaybeFigure, Method, number};
use crate::figure::{Axis, Color, Dot, Figure, Mark, Panel, Scale, Series, Symbol, short};
use crate::run_data::RunData;
use crate::{Cell, Column, Table};

/// The figure of [`Evict`].
pub(super) struct EvictFigure;

/// Reads a number of a policy with a budget, if it has it.
type Read<'a> = &'a dyn Fn(&Evicted) -> Option<f64>;

/// The series of the plain pass, after those of the policies.
const PLAIN: usize = EvictionPolicy::ALL.len();

impl AnalysisFigure for EvictFigure {
    type Output = Evict;
    const HEAD: Head =
        Head { name: "eviction", title: "What a cache must keep", paper: "beyond the paper" };
    const METHOD: Method = Method {
        term: "Eviction",
        text: "Each query sees at most a budget of keys: the first four and a window \
               (StreamingLLM), these and the secondary sinks, those that received the most \
               attention and a window (H2O), or the first four and random ones. Keys keep their \
               positions. Repetition is the share of 4-grams of 64 greedily written tokens that \
               occur earlier among them.",
    };
    const SECONDARY_ONLY: bool = false;

    fn figure(_: &RunData, evict: &Evict) -> MaybeFigure {
        if evict.policies.is_empty() {
            return Err(Self::HEAD.absent(format!("{}.", capital(&too_long(evict))), None));
        }
        let kl = |one: &Evicted| one.kl.map(|kl| kl.mean).filter(|kl| *kl > 0.0);
        let after = |one: &Evicted| Some(one.nll_after.exp());
        let before = |one: &Evicted| Some(one.nll_before.exp());
        let mut findings: Vec<String> = budgets(evict)
            .map(|budget| format!("{}.", capital(&of_budget(evict, budget))))
            .collect();
        if !evict.skipped.is_empty() {
            findings.push(format!("{}.", capital(&too_long(evict))));
        }
        let logs =
            |name: &str, values: Vec<f64>| Axis::new(name, Scale::log_over(values.into_iter()));
        let all = |of: Read<'_>| -> Vec<f64> { evict.policies.iter().filter_map(of).collect() };
        let perplexities = [all(&after), all(&before)].concat();
        Ok(Figure {
            head: Self::HEAD,
            reading: "Each trace is run again while every token sees only a limited number of \
                      earlier keys. The lines show, by the number of keys, how much predictions \
                      change, the perplexity of the traces' tokens, and how much the model \
                      repeats itself when it writes.",
            findings,
            legend: vec![
                Series::new("first 4 + window", Color::Blue, Symbol::Dot),
                Series::new("first 4 + secondary + window", Color::Vermillion, Symbol::Square),
                Series::new("heavy hitters", Color::Green, Symbol::Triangle),
                Series::new("first 4 + random", Color::Orange, Symbol::Diamond),
                Series::new("all keys", Color::Grey, Symbol::Plus),
            ],
            panels: vec![
                panel(evict, "Predictions", logs("KL, nats (log)", all(&kl)), &kl, None),
                panel(
                    evict,
                    "Perplexity",
                    logs("perplexity (log)", perplexities),
                    &after,
                    Some(&before),
                ),
                panel(
                    evict,
                    "Repetition",
                    Axis::new("% of 4-grams", Scale::between(-4.0, 104.0)),
                    &|one| one.repetition_after.map(|share| 100.0 * share),
                    Some(&|one| one.repetition_before.map(|share| 100.0 * share)),
                ),
            ],
            columns: 3,
            moving: None,
            quotes: Vec::new(),
            data: table(evict),
        })
    }

    fn finding(evict: &Evict) -> String {
        let mut parts: Vec<String> =
            budgets(evict).map(|budget| of_budget(evict, budget)).collect();
        if !evict.skipped.is_empty() {
            parts.push(too_long(evict));
        }
        parts.join("; ")
    }
}

fn budgets(evict: &Evict) -> impl Iterator<Item = usize> {
    let mut budgets: Vec<usize> = evict.policies.iter().map(|one| one.budget).collect();
    budgets.sort_unstable();
    budgets.dedup();
    budgets.into_iter()
}

fn name(policy: EvictionPolicy) -> &'static str {
    match policy {
        EvictionPolicy::Window => "window",
        EvictionPolicy::Secondary => "secondary + window",
        EvictionPolicy::HeavyHitters => "heavy hitters",
        EvictionPolicy::Random => "random",
    }
}

/// `64 keys, KL in nats: window 0.1 (perplexity 12), …`
fn of_budget(evict: &Evict, budget: usize) -> String {
    let of_budget = || evict.policies.iter().filter(|one| one.budget == budget);
    let each = of_budget().map(|one| {
        let kl = one.kl.map_or(0.0, |kl| kl.mean);
        let perplexity = perplexity(one.nll_after.exp());
        format!("{} {} (perplexity {perplexity})", name(one.policy), short(kl))
    });
    let each: Vec<String> = each.collect();
    let plain = of_budget().next().map_or(0.0, |one| one.nll_before.exp());
    format!(
        "{budget} keys, KL in nats: {}; with all keys, perplexity {}",
        each.join(", "),
        perplexity(plain)
    )
}

/// `no trace is longer than a budget of 1024 or 4096 keys`
fn too_long(evict: &Evict) -> String {
    let skipped: Vec<String> = evict.skipped.iter().map(usize::to_string).collect();
    format!("no trace is longer than a budget of {} keys", skipped.join(" or "))
}

fn panel(evict: &Evict, title: &str, y: Axis, after: Read<'_>, before: Option<Read<'_>>) -> Panel {
    let x = Axis::new("keys (log)", Scale::log_over(budgets(evict).map(|budget| budget as f64)));
    let mut panel = Panel::new(title, x, y);
    let dots = |policy: EvictionPolicy, who: &str, of: Read<'_>| {
        let of_policy = evict.policies.iter().filter(|one| one.policy == policy);
        let dot = |one: &Evicted| {
            let value = of(one)?;
            let tip = format!("{who}\n{} keys\n{}", one.budget, short(value));
            Some(Dot::new(one.budget as f64, value, tip))
        };
        of_policy.filter_map(dot).collect::<Vec<Dot>>()
    };
    for (series, policy) in EvictionPolicy::ALL.into_iter().enumerate() {
        let dots = dots(policy, name(policy), after);
        panel.marks.push(Mark::Line { series, dots, dashed: false });
    }
    if let Some(before) = before {
        let dots = dots(EvictionPolicy::Window, "all keys", before);
        panel.marks.push(Mark::Line { series: PLAIN, dots, dashed: true });
    }
    panel
}

fn table(evict: &Evict) -> Table {
    let mut data = Table::new(vec![
        Column::text("policy", "Policy"),
        Column::number("budget", "Keys"),
        Column::number("traces", "Traces"),
        Column::number("positions", "Positions"),
        Column::number("kl", "KL"),
        Column::number("kl_median", "KL (median)"),
        Column::number("perplexity_before", "Perplexity before"),
        Column::number("perplexity_after", "Perplexity after"),
        Column::number("top1", "Top token unchanged"),
        Column::number("repetition_before", "Repetition before"),
        Column::number("repetition_after", "Repetition after"),
    ]);
    for one in &evict.policies {
        let maybe = |x: Option<f64>| x.map_or(Cell::none(), number);
        data.push(vec![
            Cell::text(name(one.policy)),
            Cell::count(one.budget),
            Cell::count(one.traces),
            Cell::count(one.top1.n),
            maybe(one.kl.map(|kl| kl.mean)),
            maybe(one.kl.map(|kl| kl.median)),
            number(one.nll_before.exp()),
            number(one.nll_after.exp()),
            number(one.top1.share),
            maybe(one.repetition_before),
            maybe(one.repetition_after),
        ]);
    }
    data
}
