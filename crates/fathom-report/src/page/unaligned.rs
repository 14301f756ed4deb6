//! The section about tokens that draw attention without being aligned with the reference.

use std::fmt::Write;

use fathom_sinks::Agreement;

use crate::plural;
use crate::run_data::RunData;
use crate::table::html;
use crate::unaligned_table;

/// The title of the section.
pub(super) const TITLE: &str = "Tokens that draw attention without being aligned";

/// Maximum number of tokens.
pub(super) const MOST: usize = 40;

/// The content of the section, if attention was measured.
pub(super) fn section(out: &mut String, run: &RunData, agreement: &Agreement) {
    let count = agreement.unaligned_count;
    if count == 0 {
        out.push_str(
            "<p class=\"absent\">There are none: wherever a head's sink score of a token is above \
             0.3, the token is aligned with the reference.</p>",
        );
        return;
    }
    let _ = write!(
        out,
        "<p>{} {} a sink score above 0.3 at some head of a layer at which {} not aligned with the \
         reference; {} aligned at no layer at all. The others are aligned elsewhere: often one \
         layer earlier, because the attention of a layer reads the output of the layer before. \
         The last {} tokens of each trace are left out, since few positions attend to them.</p>{}",
        plural(count, "token"),
        if count == 1 { "has" } else { "have" },
        if count == 1 { "it is" } else { "they are" },
        match (agreement.never_aligned_count, count) {
            (0, _) => "none is".to_owned(),
            (1, _) => "1 is".to_owned(),
            (n, _) => format!("{n} are"),
        },
        Agreement::FEW_LATER,
        html::render(
            &unaligned_table(&[(&run.name, agreement)], MOST),
            "By score; first those that are aligned at no layer",
            MOST,
        )
    );
}
