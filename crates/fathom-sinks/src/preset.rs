//! The two sets of rules sinks are found and graded by.

use serde::{Deserialize, Serialize};

use crate::Clip;

/// Which rules find and grade sinks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// The paper's: cosine > 0.95, graded by where a sink starts and ends (definition 2.3).
    #[default]
    Paper,
    /// The published scripts': |cosine| > 0.9, graded by the number of layers alone, the last layer
    /// taken after the final norm, tokens before the reference left out.
    Upstream,
}

/// What kind of sink a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// BOS and its kin.
    Primary,
    /// Arises later, or ends sooner, than the primary sinks.
    Secondary,
    /// Aligned too briefly to count.
    Noise,
}

impl Preset {
    /// The cosine that must be exceeded, τ.
    pub fn threshold(self) -> f32 {
        match self {
            Preset::Paper => 0.95,
            Preset::Upstream => 0.9,
        }
    }

    /// The preset's name, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Preset::Paper => "paper",
            Preset::Upstream => "upstream",
        }
    }

    /// Whether a cosine makes a token a sink.
    pub fn aligned(self, cosine: f32, threshold: f32) -> bool {
        match self {
            Preset::Paper => cosine > threshold,
            Preset::Upstream => cosine.abs() > threshold,
        }
    }

    /// Grades a token that is a sink at `layers` (ascending, not empty) of a model with
    /// `model_layers` layers whose reference is a sink at `clip`.
    pub fn classify(self, layers: &[usize], clip: Clip, model_layers: usize) -> Class {
        let lifetime = layers.len();
        match self {
            Preset::Paper => {
                let starts = layers.first() == Some(&clip.start);
                let lasts = layers.last().is_some_and(|last| last + 2 >= clip.end);
                match lifetime {
                    _ if starts && lasts => Class::Primary,
                    0 | 1 => Class::Noise,
                    _ => Class::Secondary,
                }
            }
            Preset::Upstream => match lifetime {
                n if n + 15 >= model_layers => Class::Primary,
                n if n > 4 => Class::Secondary,
                _ => Class::Noise,
            },
        }
    }
}

impl Class {
    /// All classes, in order.
    pub const ALL: [Class; 3] = [Class::Primary, Class::Secondary, Class::Noise];

    /// Fathom's name.
    pub fn name(self) -> &'static str {
        match self {
            Class::Primary => "primary",
            Class::Secondary => "secondary",
            Class::Noise => "noise",
        }
    }

    /// The published files' name (`sink_type`).
    pub fn sink_type(self) -> &'static str {
        match self {
            Class::Primary => "bos_sink",
            Class::Secondary => "secondary",
            Class::Noise => "noise",
        }
    }

    /// Reads a published name; older published files say `cliff` for secondary.
    pub fn from_sink_type(name: &str) -> Option<Class> {
        match name {
            "bos_sink" => Some(Class::Primary),
            "secondary" | "cliff" => Some(Class::Secondary),
            "noise" => Some(Class::Noise),
            _ => None,
        }
    }
}
