//! The section "Methods": definitions, and how the runs were made.

use std::fmt::Write;

use fathom_model::PromptOptions;
use fathom_sinks::Preset;

use super::{Section, size};
use crate::escape::escape;
use crate::figures::{Method, methods};
use crate::run_data::RunData;

/// What all figures build on.
const DEFINITIONS: [Method; 5] = [
    Method {
        term: "Reference",
        text: "The token at position 0, or of several candidates the one with the largest mean \
               norm. It is a sink from the layer where its norm rises most to the one where it \
               falls most, provided that the rise is large compared with the mean token; \
               otherwise the trace has no primary sink.",
    },
    Method {
        term: "Sink",
        text: "A token is a sink at the layers in between where the cosine of its hidden state \
               (after the layer) with the reference's is above τ. Its level is (first layer, \
               number of layers).",
    },
    Method {
        term: "Classes",
        text: "Primary: starts with the reference and lasts to its end. Secondary: starts later \
               or ends sooner, and lasts two layers or more. Noise: one layer.",
    },
    Method {
        term: "Sink score",
        text: "The mean attention a token receives from itself and all later tokens (the paper's \
               equation 1), averaged over heads; exact for any length. Attention of layer l reads \
               the output of layer l − 1.",
    },
    Method {
        term: "Four measures",
        text: "For each token and layer: alignment (it is a sink, in any phase), attention (the \
               sink score of a head is above 0.3), massive activations (a component of the hidden \
               state is above 100 and above 1000 times the median of the token's components), and \
               norm (the norm of the hidden state is at least the factor times the mean norm of \
               the other tokens, the factor being the least rise of the reference).",
    },
];

/// Definitions, the methods of the analyses, then how each run was made.
pub(super) fn section(out: &mut String, sections: &[Section<'_>]) {
    out.push_str("<section id=\"methods\"><h2>Methods</h2><dl>");
    for Method { term, text } in DEFINITIONS.into_iter().chain(methods()) {
        let _ = write!(out, "<dt>{term}</dt><dd>{text}</dd>");
    }
    out.push_str("</dl>");
    for section in sections {
        manifest(out, section.run);
    }
    let _ = write!(
        out,
        "<p class=\"files\">Made by fathom {} from the runs' files, without their models. This \
         page loads nothing and sends nothing.</p></section></main>",
        env!("CARGO_PKG_VERSION")
    );
}

fn manifest(out: &mut String, run: &RunData) {
    let m = run.stored.manifest();
    let o = &m.options;
    let preset = match o.preset {
        Preset::Paper => "paper",
        Preset::Upstream => {
            "upstream (|cosine|; classes by number of layers, as the published scripts)"
        }
    };
    let reference = o.reference.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    let limit = |limit: Option<usize>| limit.map_or("none".to_owned(), |limit| limit.to_string());
    let mut rows = vec![
        ("run", run.stored.dir().display().to_string()),
        ("model", m.model.name()),
        (
            "shape",
            format!(
                "{}, {} layers, {} heads, width {}, rotary base {}",
                m.model.architecture,
                m.model.layers,
                m.model.heads,
                m.model.hidden,
                m.model.rope_base
            ),
        ),
        ("config SHA-256", m.model.fingerprints.config_sha256.clone()),
        ("weights SHA-256", m.model.fingerprints.weights_sha256.clone()),
        ("tokenizer SHA-256", m.model.fingerprints.tokenizer_sha256.clone()),
        ("traces", format!("{} ({})", m.traces.file, size(run))),
        ("traces SHA-256", m.traces.sha256.clone()),
        ("preset", preset.to_owned()),
        ("τ", o.threshold.to_string()),
        ("least rise of the reference", format!("{} × the mean token", o.rise_factor)),
        ("candidates for the reference", reference),
        ("attention", if o.attention { "measured" } else { "not measured" }.to_owned()),
        ("chat template", if o.chat_template { "applied" } else { "not applied" }.to_owned()),
        ("prompts", prompts(&o.prompts)),
        ("most tokens of a trace", limit(o.max_tokens)),
        ("most traces", limit(o.limit)),
        ("precision", o.precision.clone()),
        ("engine", m.engine.clone()),
        ("scanned by", format!("fathom {}, run format {}", m.fathom, m.format)),
    ];
    if let Some(adapter) = &m.model.adapter {
        rows.push(("adapter", adapter.path.clone()));
        rows.push(("adapter's config SHA-256", adapter.config_sha256.clone()));
        rows.push(("adapter's tensors SHA-256", adapter.weights_sha256.clone()));
    }
    let _ =
        write!(out, "<h3>{}</h3><div class=\"wide\"><table class=\"manifest\">", escape(&run.name));
    for (name, value) in rows {
        let _ = write!(out, "<tr><th scope=\"row\">{name}</th><td>{}</td></tr>", escape(&value));
    }
    out.push_str("</table></div>");
    if !m.remarks.is_empty() {
        out.push_str("<p>Remarks of the scan:</p><ul class=\"remarks\">");
        for remark in &m.remarks {
            let _ = write!(out, "<li>{}</li>", escape(&remark.to_string()));
        }
        out.push_str("</ul>");
    }
}

/// Prompt options other than those of the model's own files.
fn prompts(options: &PromptOptions) -> String {
    match options.is_default() {
        true => "as in the model's files".to_owned(),
        false => serde_json::to_string(options).unwrap_or_default(),
    }
}
