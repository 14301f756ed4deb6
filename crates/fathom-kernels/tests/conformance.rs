//! Every code path of the CPU backend passes the conformance check.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;

#[test]
fn every_path_is_row_invariant() {
    for (path, precision) in variants() {
        fathom_backend::conformance::check(&cpu(path, precision, 2))
            .unwrap_or_else(|violation| panic!("{path} {precision:?}: {violation}"));
    }
}
