//! The page: one HTML file that needs nothing else.
//!
//! Its content is plain HTML and SVG; the script at its end only makes it interactive. The content
//! security policy in its head blocks all loading and all other scripts, so that text of a run
//! could do no harm even if the escaping missed something.

mod data;
mod examples;
mod figures;
mod methods;
mod unaligned;

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fathom_sinks::{SinkRow, TokenRow, TraceDetection};
use sha2::{Digest, Sha256};

use crate::escape::{escape, script_json, token_label};
use crate::figures::MaybeFigure;
use crate::number::grouped;
use crate::run_data::RunData;
use crate::run_phases::layers_of;
use crate::table::html;
use crate::{
    Cell, Column, Table, measured_token_table, plural, sink_table, summary, token_table,
    unaligned_sentence,
};

/// The beginning of every page, and of no other file.
pub const MARK: &str = "<!doctype html>\n<!-- made by fathom report -->\n";

const STYLE: &str = include_str!("page/style.css");
const SCRIPT: &str = include_str!("page/script.js");

/// Number of tokens in the table of those that are sinks by any measure.
const STRONGEST: usize = 20;

/// The section of one run.
pub struct Section<'a> {
    /// The run.
    pub run: &'a RunData,
    /// Its figures.
    pub figures: Vec<MaybeFigure>,
    /// The directory of the figures' files, as the page names it.
    pub files: String,
}

/// The page of a report. `compared` are figures of all runs together, whose files are in the
/// directory `files`. The page has the text of the first `texts` traces of each run.
pub fn page(
    sections: &[Section<'_>],
    compared: &[MaybeFigure],
    files: &str,
    texts: usize,
) -> String {
    let title = match sections {
        [section] => format!("Attention sinks of {}", section.run.name),
        _ => format!("Attention sinks of {} models", sections.len()),
    };
    let mut body = String::new();
    header(&mut body, sections, &title);
    if sections.len() > 1 {
        comparison(&mut body, sections, compared, files);
    }
    for section in sections {
        run_section(&mut body, section, sections.len() > 1);
    }
    methods::section(&mut body, sections);
    let data = data::page_data(sections, compared, texts);
    let hash = STANDARD.encode(Sha256::digest(SCRIPT.as_bytes()));
    format!(
        "{MARK}<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; \
         style-src 'unsafe-inline'; script-src 'sha256-{hash}'; base-uri 'none'; \
         form-action 'none'\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\"><title>{}</title>\n\
         <style>{STYLE}</style></head>\n\
         <body>\n{body}\n\
         <script type=\"application/json\" id=\"data\">{}</script>\n\
         <script>{SCRIPT}</script>\n</body></html>\n",
        escape(&title),
        script_json(&data),
    )
}

fn header(out: &mut String, sections: &[Section<'_>], title: &str) {
    let _ = write!(out, "<header><h1>{}</h1><nav aria-label=\"Contents\"><ul>", escape(title));
    if sections.len() > 1 {
        out.push_str("<li><a href=\"#compare\">Side by side</a></li>");
    }
    for section in sections {
        let (a, name) = (&section.run.anchor, escape(&section.run.name));
        let has_unaligned = section.run.measures.as_ref().is_some_and(|m| m.attention);
        let unaligned = match has_unaligned {
            true => format!("<li><a href=\"#{a}-unaligned\">Drawing, not aligned</a></li>"),
            false => String::new(),
        };
        if sections.len() > 1 {
            let _ = write!(out, "<li><a href=\"#{a}\">{name}</a></li>");
        } else {
            let _ = write!(
                out,
                "<li><a href=\"#{a}-figures\">Figures</a></li>{unaligned}\
                 <li><a href=\"#{a}-levels\">Levels and tokens</a></li>\
                 <li><a href=\"#{a}-text\">The text</a></li>"
            );
        }
    }
    out.push_str("<li><a href=\"#methods\">Methods</a></li></ul></nav></header>\n<main>");
}

fn comparison(out: &mut String, sections: &[Section<'_>], compared: &[MaybeFigure], files: &str) {
    out.push_str("<section id=\"compare\"><h2>Side by side</h2>");
    let rows: Vec<SinkRow> = sections.iter().map(|section| sink_row(section.run)).collect();
    out.push_str(&html::render(
        &sink_table(&rows),
        "Sinks by model (the paper's Table 1; X: none)",
        100,
    ));
    let rows: Vec<TokenRow> =
        sections.iter().map(|p| TokenRow::new(&p.run.name, &p.run.traces)).collect();
    out.push_str(&html::render(&token_table(&rows, 7), "Tokens of secondary sinks (Table 3)", 100));
    figures::figures(out, compared, "all", files);
    out.push_str("</section>\n");
}

fn sink_row(run: &RunData) -> SinkRow {
    SinkRow::new(&run.name, Some(run.stored.manifest().model.rope_base), &run.traces)
}

fn run_section(out: &mut String, section: &Section<'_>, several: bool) {
    let run = section.run;
    let a = &run.anchor;
    let heading = if several { escape(&run.name) } else { "In short".to_owned() };
    let _ = write!(out, "<section id=\"{a}\" class=\"summary\"><h2>{heading}</h2>");
    if !run.stored.is_complete() {
        let of = run.planned.map_or(String::new(), |planned| format!(" of {planned}"));
        let _ = write!(
            out,
            "<p class=\"warning\"><strong>Half a run.</strong> The scan has not finished: this \
             page shows {}{of} {}, those recorded so far.</p>",
            grouped(run.traces.len()),
            if run.traces.len() == 1 && of.is_empty() { "trace" } else { "traces" }
        );
    }
    for line in summary(run.stored.manifest(), &run.traces).lines() {
        let _ = write!(out, "<p>{}</p>", escape(line));
    }
    if let Some(line) = run.measures.as_ref().and_then(unaligned_sentence) {
        let _ = write!(out, "<p>{} <a href=\"#{a}-unaligned\">Which?</a></p>", escape(&line));
    }
    if !several {
        out.push_str(&html::render(
            &sink_table(&[sink_row(run)]),
            "The paper's Table 1 (X: none)",
            1,
        ));
    }
    if let Some(table) = most_attended(run) {
        let caption = "Tokens that receive most attention from later tokens, averaged over heads \
                       and layers, without the last part of each trace, which few tokens follow";
        let _ = write!(
            out,
            "<details{}><summary>Which tokens receive most attention</summary>{}</details>",
            if run.levels.entries().is_empty() { " open" } else { "" },
            html::render(&table, caption, 12)
        );
    }
    let measured = run.measures.as_ref().filter(|agreement| !agreement.strongest.is_empty());
    if let Some(agreement) = measured {
        let table = measured_token_table(&[(&run.name, agreement)], STRONGEST);
        let _ = write!(
            out,
            "<details><summary>Which tokens are sinks by any of four measures</summary>{}\
             </details>",
            html::render(
                &table,
                "The strongest by sink score, then by number of layers",
                STRONGEST
            )
        );
    }
    let _ = write!(
        out,
        "</section>\n<section id=\"{a}-figures\"><h2>{}</h2>",
        titled("Figures", run, several)
    );
    figures::figures(out, &section.figures, a, &section.files);
    if let Some(agreement) = run.measures.as_ref().filter(|agreement| agreement.attention) {
        let title = titled(unaligned::TITLE, run, several);
        let _ = write!(out, "</section>\n<section id=\"{a}-unaligned\"><h2>{title}</h2>");
        unaligned::section(out, run, agreement);
    }
    let _ = write!(
        out,
        "</section>\n<section id=\"{a}-levels\"><h2>{}</h2>",
        titled("Levels and their tokens", run, several)
    );
    examples::levels(out, run);
    let _ = write!(
        out,
        "</section>\n<section id=\"{a}-text\"><h2>{}</h2>",
        titled("The text", run, several)
    );
    reader(out, run);
    out.push_str("</section>\n");
}

fn titled(what: &str, run: &RunData, several: bool) -> String {
    if several { format!("{what}: {}", escape(&run.name)) } else { what.to_owned() }
}

/// The elements in which the script shows the traces.
fn reader(out: &mut String, run: &RunData) {
    let a = &run.anchor;
    if run.text.is_none() {
        out.push_str(
            "<p class=\"absent\">This run has no tokens: it was scanned by an earlier version. A \
             new scan stores them.</p>",
        );
        return;
    }
    let heat = match run.attention {
        Some(_) => {
            "<label><input type=\"checkbox\" class=\"heat\"> shade by attention received</label>"
        }
        None => "",
    };
    let _ = write!(
        out,
        "<p>Primary sinks are underlined twice, secondary ones once and marked with the letter of \
         their level, noise (one layer) is dotted. Point at a sink, or step from sink to sink with \
         the buttons or the keys <kbd>n</kbd> and <kbd>p</kbd>.</p>\
         <noscript><p class=\"absent\">The text is shown by a script, which this browser does not \
         run.</p></noscript>\
         <div class=\"reader\" data-run=\"{a}\" hidden><div class=\"bar\"><label>trace \
         <select class=\"trace\"></select></label> \
         <label>sinks <select class=\"kind\"></select></label> \
         <button type=\"button\" class=\"prev\">◀ previous</button> \
         <button type=\"button\" class=\"next\">next ▶</button> {heat} \
         <span class=\"where\" role=\"status\"></span></div>\
         <canvas class=\"strip\" height=\"28\" role=\"img\" \
         aria-label=\"Sinks along the trace\"></canvas>\
         <div class=\"text\" tabindex=\"0\" role=\"region\" \
         aria-label=\"Text of the trace\"></div></div>"
    );
}

/// The tokens that receive most attention, if the scan measured it.
fn most_attended(run: &RunData) -> Option<Table> {
    const MOST: usize = 12;
    let mut top: Vec<(usize, usize, f32)> = Vec::new();
    for (t, received) in run.attention.as_ref()?.iter().enumerate() {
        let end = received.len().saturating_sub((received.len() / 20).max(16));
        let mut of: Vec<_> = received[..end].iter().enumerate().map(|(p, x)| (t, p, *x)).collect();
        of.sort_by(|a, b| b.2.total_cmp(&a.2));
        top.extend(of.into_iter().take(MOST));
    }
    top.sort_by(|a, b| b.2.total_cmp(&a.2));
    let mut table = Table::new(vec![
        Column::number("trace", "Trace"),
        Column::number("position", "Position"),
        Column::text("token", "Token"),
        Column::number("share", "Attention received"),
        Column::text("sink", "Sink?"),
    ]);
    for (t, position, x) in top.into_iter().take(MOST) {
        let trace = &run.traces[t];
        let sink = trace.sinks.iter().find(|sink| sink.position == position);
        let token = run.text.as_ref().and_then(|text| {
            let id = *text.ids.get(t)?.get(position)?;
            Some(token_label(text.texts.get(&id).map(String::as_str), id))
        });
        table.push(vec![
            Cell::new(trace.sample_index.to_string(), trace.sample_index),
            Cell::count(position),
            Cell::text(token.unwrap_or_default()),
            Cell::new(format!("{:.2} %", 100.0 * x), x),
            Cell::text(
                sink.map_or_else(|| unlisted_class(trace, position), |s| s.class.name().into()),
            ),
        ]);
    }
    (!table.is_empty()).then_some(table)
}

/// Whether a token that is not listed as a sink is one in a phase that is not listed.
fn unlisted_class(trace: &TraceDetection, position: usize) -> String {
    let phases = trace.other_phases.iter().flat_map(|phase| {
        let here = phase.sinks.iter().filter(|sink| sink.position == position);
        here.map(|sink| format!("{} in {}, not listed", sink.class.name(), layers_of(phase.clip)))
    });
    let phases: Vec<String> = phases.collect();
    if phases.is_empty() { "no".to_owned() } else { phases.join("; ") }
}

/// Number of tokens scanned in all traces.
fn all_tokens(run: &RunData) -> usize {
    run.traces.iter().map(TraceDetection::scanned_tokens).sum()
}

/// `3 traces, 1 234 tokens`
fn size(run: &RunData) -> String {
    format!("{}, {}", plural(run.traces.len(), "trace"), plural(all_tokens(run), "token"))
}
