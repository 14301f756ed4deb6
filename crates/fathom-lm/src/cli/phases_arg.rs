//! `--phases`: which phases' sinks count.

use clap::ValueEnum;
use fathom_sinks::Phases;

/// `--phases`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum PhasesName {
    /// Only the phase of the reference's largest rise, as in the paper
    Largest,
    /// Every run of layers in which the reference's norm is large
    All,
}

impl From<PhasesName> for Phases {
    fn from(name: PhasesName) -> Phases {
        match name {
            PhasesName::Largest => Phases::Largest,
            PhasesName::All => Phases::All,
        }
    }
}
