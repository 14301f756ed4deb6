//! Every path of the CPU keeps the law of the trait it implements.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;

#[test]
fn every_path_keeps_the_law_of_row_invariance() {
    for (path, precision) in variants() {
        fathom_backend::law::check(&cpu(path, precision, 2))
            .unwrap_or_else(|violation| panic!("{path} {precision:?}: {violation}"));
    }
}
