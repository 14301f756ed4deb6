//! Where the attention goes that knocked-out keys lose: "Knock-out" (docs/definitions.md).

use serde::{Deserialize, Serialize};

use super::edited::Outcome;
use super::scanned::ScannedTrace;
use crate::Class;

/// Changes of attention over the layers at which keys are knocked out, as attention per query and
/// layer: the mean over heads, layers and positions after the first knocked-out key. What the
/// knocked-out keys lose is what all others gain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Compensation {
    /// Attention that the knocked-out keys lose.
    pub freed: f64,
    /// What the reference gains, if it is not knocked out.
    pub to_bos: f64,
    /// What primary sinks gain, without the reference.
    pub to_primary: f64,
    /// What secondary sinks gain.
    pub to_secondary: f64,
    /// What tokens gain that are not sinks.
    pub to_others: f64,
    /// Entropy in nats of the attention in the plain pass.
    pub entropy_before: f64,
    /// The same, with the keys knocked out.
    pub entropy_after: f64,
}

/// A token that receives attention of knocked-out keys.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Receiver {
    /// Its position.
    pub position: usize,
    /// Its token.
    pub token_id: u32,
    /// Its class, if it is a sink in the plain pass.
    pub class: Option<Class>,
    /// The attention it gains, as in [`Compensation`].
    pub gained: f64,
    /// Its sink score in the plain pass: the mean over heads and the layers of the knock-out.
    pub score_before: f64,
    /// The same, with the keys knocked out.
    pub score_after: f64,
}

impl Receiver {
    /// Maximum number of receivers that are listed for a trace.
    pub const MOST: usize = 5;
}

impl Compensation {
    /// The mean of these, each weighted by its number of positions.
    pub(super) fn mean(all: &[(usize, Compensation)]) -> Compensation {
        let positions: usize = all.iter().map(|(positions, _)| positions).sum();
        let mean = |of: fn(&Compensation) -> f64| {
            let terms = all.iter().map(|(positions, one)| *positions as f64 * of(one));
            terms.sum::<f64>() / positions.max(1) as f64
        };
        Compensation {
            freed: mean(|one| one.freed),
            to_bos: mean(|one| one.to_bos),
            to_primary: mean(|one| one.to_primary),
            to_secondary: mean(|one| one.to_secondary),
            to_others: mean(|one| one.to_others),
            entropy_before: mean(|one| one.entropy_before),
            entropy_after: mean(|one| one.entropy_after),
        }
    }
}

/// Keys of a trace that a pass knocks out.
pub(super) struct Hidden<'a> {
    /// Their positions, ascending.
    pub keys: &'a [usize],
    /// The first position after the first of them.
    pub from: usize,
    /// The layers at which they are knocked out; not empty.
    pub layers: &'a [usize],
}

impl Hidden<'_> {
    /// Compares the attention of a pass with that of the plain pass.
    pub fn compensation(
        &self,
        trace: &ScannedTrace<'_>,
        before: &Outcome,
        after: &Outcome,
    ) -> (Compensation, Vec<Receiver>) {
        let tokens = trace.ids.len();
        let queries = (tokens - self.from) as f64;
        let sinks = &trace.detection.sinks;
        let mut sum = Compensation {
            entropy_before: self.mean(|layer| before.attention[layer].entropy),
            entropy_after: self.mean(|layer| after.attention[layer].entropy),
            ..Compensation::default()
        };
        let mut receivers = Vec::new();
        for (position, token_id) in trace.ids.iter().enumerate() {
            let old = self.mean(|layer| before.attention[layer].received[position]);
            let new = self.mean(|layer| after.attention[layer].received[position]);
            let gained = (new - old) / queries;
            if self.keys.binary_search(&position).is_ok() {
                sum.freed -= gained;
                continue;
            }
            let sink = sinks.binary_search_by_key(&position, |sink| sink.position).ok();
            let class = sink.map(|sink| sinks[sink].class);
            let gains = match class {
                _ if position == trace.reference => &mut sum.to_bos,
                Some(Class::Primary) => &mut sum.to_primary,
                Some(Class::Secondary) => &mut sum.to_secondary,
                Some(Class::Noise) | None => &mut sum.to_others,
            };
            *gains += gained;
            if gained > 0.0 {
                let score = |received: f64| received / (tokens - position) as f64;
                receivers.push(Receiver {
                    position,
                    token_id: *token_id,
                    class,
                    gained,
                    score_before: score(old),
                    score_after: score(new),
                });
            }
        }
        receivers.sort_by(|a, b| b.gained.total_cmp(&a.gained)); // stable
        receivers.truncate(Receiver::MOST);
        (sum, receivers)
    }

    /// The mean over the layers of the knock-out.
    fn mean(&self, of_layer: impl Fn(usize) -> f64) -> f64 {
        self.layers.iter().map(|layer| of_layer(*layer)).sum::<f64>() / self.layers.len() as f64
    }
}
