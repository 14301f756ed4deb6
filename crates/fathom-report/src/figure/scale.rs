//! Scales of axes: positions of values, and ticks.

/// How values map to positions along an axis.
#[derive(Clone, Debug, PartialEq)]
pub enum Scale {
    /// Linear.
    Linear {
        /// The least.
        min: f64,
        /// The largest.
        max: f64,
        /// Whether only whole numbers have ticks.
        whole: bool,
    },
    /// Logarithmic.
    Log {
        /// The least, above zero.
        min: f64,
        /// The largest.
        max: f64,
    },
    /// The whole numbers from 0, each with a name.
    Names(Vec<String>),
    /// From 0 to 1 without ticks, for coordinates whose values have no meaning.
    Bare,
}

/// The number of tick labels that fit in a row.
const TICKS: f64 = 6.0;

impl Scale {
    /// A linear scale over all finite values, with a margin.
    pub fn over(values: impl Iterator<Item = f64>) -> Scale {
        let (min, max) = range(values);
        let room = if max > min { 0.04 * (max - min) } else { 0.5 * max.abs().max(1.0) };
        Scale::Linear { min: min - room, max: max + room, whole: false }
    }

    /// A linear scale from 0 to the largest finite value, with a margin.
    pub fn from_zero(values: impl Iterator<Item = f64>) -> Scale {
        let (_, max) = range(values);
        let max = if max > 0.0 { 1.06 * max } else { 1.0 };
        Scale::Linear { min: 0.0, max, whole: false }
    }

    /// A logarithmic scale over all positive values, with a margin.
    pub fn log_over(values: impl Iterator<Item = f64>) -> Scale {
        let (min, max) = range(values.filter(|value| *value > 0.0));
        let (min, max) = if min > 0.0 { (min, max) } else { (0.1, 1.0) };
        let room = (max / min).powf(0.05).max(1.1);
        Scale::Log { min: min / room, max: max * room }
    }

    /// Whole numbers, with a margin of half a unit on both sides.
    pub fn whole(min: usize, max: usize) -> Scale {
        Scale::Linear { min: min as f64 - 0.5, max: max as f64 + 0.5, whole: true }
    }

    /// A linear scale over a range.
    pub fn between(min: f64, max: f64) -> Scale {
        Scale::Linear { min, max, whole: false }
    }

    /// The position of a value: 0 and 1 are the ends of the axis. Not finite if the value has no
    /// position.
    pub fn place(&self, value: f64) -> f64 {
        match self {
            Scale::Linear { min, max, .. } => (value - min) / (max - min),
            Scale::Log { min, max } => (value / min).ln() / (max / min).ln(),
            Scale::Names(names) => (value + 0.5) / names.len().max(1) as f64,
            Scale::Bare => 0.04 + 0.92 * value,
        }
    }

    /// Values of the ticks, with their labels.
    pub fn ticks(&self) -> Vec<(f64, String)> {
        match self {
            Scale::Linear { min, max, whole } => {
                let step = round_step((max - min) / TICKS);
                let step = if *whole { step.max(1.0).round() } else { step };
                let first = (min / step).ceil() as i64;
                let last = (max / step).floor() as i64;
                (first..=last.min(first + 40))
                    .map(|i| (i as f64 * step, short(i as f64 * step)))
                    .collect()
            }
            Scale::Log { min, max } => {
                let (first, last) = (min.log10().ceil() as i32, max.log10().floor() as i32);
                let tens = || (first..=last).map(|e| 10f64.powi(e));
                if last - first >= 1 {
                    let every = ((last - first) as usize / 6).max(1);
                    tens().step_by(every).map(|x| (x, short(x))).collect()
                } else {
                    let all = (first - 1..=last)
                        .flat_map(|e| [1.0, 2.0, 3.0, 5.0, 7.0].map(|digit| digit * 10f64.powi(e)));
                    let inside: Vec<f64> = all.filter(|x| (*min..=*max).contains(x)).collect();
                    if inside.len() < 2 {
                        return [*min, *max].map(|x| (x, short(x))).to_vec();
                    }
                    inside.into_iter().map(|x| (x, short(x))).collect()
                }
            }
            Scale::Bare => Vec::new(),
            Scale::Names(names) => {
                names.iter().enumerate().map(|(i, name)| (i as f64, name.clone())).collect()
            }
        }
    }
}

/// The least and the largest finite value; 0 and 0 if there is none.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let finite = values.filter(|value| value.is_finite());
    let (min, max) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(min, max), value| {
        (min.min(value), max.max(value))
    });
    if min <= max { (min, max) } else { (0.0, 0.0) }
}

/// The smallest number of the form 1, 2 or 5 times a power of ten that is at least `step`.
fn round_step(step: f64) -> f64 {
    let ten = 10f64.powf(step.max(1e-12).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|digit| digit * ten);
    steps.into_iter().find(|candidate| *candidate >= step * 0.999).unwrap_or(step)
}

/// A number in few characters.
pub fn short(x: f64) -> String {
    let size = x.abs();
    let text = match size {
        _ if !x.is_finite() => return "–".to_owned(),
        0.0 => return "0".to_owned(),
        _ if !(1e-4..1e6).contains(&size) => {
            let text = format!("{x:.2e}");
            let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let digits = digits.trim_end_matches('0').trim_end_matches('.');
            return format!("{digits}e{exponent}");
        }
        _ if size >= 100.0 => format!("{x:.0}"),
        _ if size >= 10.0 => format!("{x:.1}"),
        _ if size >= 1.0 => format!("{x:.2}"),
        _ if size >= 0.01 => format!("{x:.3}"),
        _ => format!("{x:.5}"),
    };
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let names = |scale: Scale| scale.ticks().into_iter().map(|t| t.1).collect::<Vec<_>>();
        assert_eq!(names(Scale::whole(0, 19)), ["0", "5", "10", "15"]);
        assert_eq!(names(Scale::between(0.0, 1.0)), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!(names(Scale::Log { min: 0.5, max: 2000.0 }), ["1", "10", "100", "1000"]);
        assert_eq!(names(Scale::Log { min: 33.0, max: 58.0 }), ["50", "33", "58"][1..]);
        assert_eq!(names(Scale::Log { min: 15.0, max: 58.0 }), ["20", "30", "50"]);
    }

    #[test]
    fn values_that_are_all_the_same_or_none_still_have_a_scale() {
        for scale in [
            Scale::over([3.0, 3.0].into_iter()),
            Scale::over([f64::NAN].into_iter()),
            Scale::log_over([0.0, -1.0].into_iter()),
            Scale::log_over([7.0].into_iter()),
            Scale::from_zero([].into_iter()),
        ] {
            assert!(!scale.ticks().is_empty(), "{scale:?}");
            assert!(scale.ticks().iter().all(|(x, _)| (-0.01..=1.01).contains(&scale.place(*x))));
        }
    }

    #[test]
    fn numbers_are_short() {
        let numbers = [0.0, 1.0, 1234.5, 0.95, 0.0123, 1.0e-7, 2.5e9, 12.04, f64::NAN];
        let expected = ["0", "1", "1234", "0.95", "0.012", "1e-7", "2.5e9", "12", "–"];
        assert_eq!(numbers.map(short), expected);
    }
}
