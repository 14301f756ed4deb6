//! The two sets of rules for detecting and classifying sinks.

use serde::{Deserialize, Serialize};

use crate::Clip;

/// Rules for detecting and classifying sinks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// The paper's rules: cosine > 0.95, classified by the first and last layer: Classes
    /// (docs/definitions.md).
    #[default]
    Paper,
    /// The published scripts' rules: |cosine| > 0.9, classified by the number of layers alone. The
    /// last layer's state is taken after the final norm, and tokens before the reference are
    /// excluded.
    Upstream,
}

/// The class of a sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// A sink like BOS: it starts and ends with the reference.
    Primary,
    /// Starts later or ends earlier than the primary sinks.
    Secondary,
    /// Aligned for too few layers to count as a sink.
    Noise,
}

impl Preset {
    /// The default cosine threshold τ.
    pub fn threshold(self) -> f32 {
        match self {
            Preset::Paper => 0.95,
            Preset::Upstream => 0.9,
        }
    }

    /// The preset's name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Preset::Paper => "paper",
            Preset::Upstream => "upstream",
        }
    }

    /// Whether a token with this cosine is a sink.
    pub fn aligned(self, cosine: f32, threshold: f32) -> bool {
        match self {
            Preset::Paper => cosine > threshold,
            Preset::Upstream => cosine.abs() > threshold,
        }
    }

    /// Classifies a token that is a sink at `layers` (ascending, not empty) of a model with
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

    /// The name that Fathom uses.
    pub fn name(self) -> &'static str {
        match self {
            Class::Primary => "primary",
            Class::Secondary => "secondary",
            Class::Noise => "noise",
        }
    }

    /// The name in published files (`sink_type`).
    pub fn sink_type(self) -> &'static str {
        match self {
            Class::Primary => "bos_sink",
            Class::Secondary => "secondary",
            Class::Noise => "noise",
        }
    }

    /// Parses a published name; older published files use `cliff` for secondary.
    pub fn from_sink_type(name: &str) -> Option<Class> {
        match name {
            "bos_sink" => Some(Class::Primary),
            "secondary" | "cliff" => Some(Class::Secondary),
            "noise" => Some(Class::Noise),
            _ => None,
        }
    }
}
