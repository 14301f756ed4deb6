//! The page: one HTML file that needs nothing else.
//!
//! Everything stands in it as plain HTML and SVG; the script at its end only makes it answer. The
//! policy in its head lets nothing load and no other script run, so that a text of a run that got
//! through the escaping would still do nothing.

mod data;
mod examples;
mod figures;
mod methods;

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fathom_sinks::{SinkRow, TokenRow};
use sha2::{Digest, Sha256};

use crate::escape::{escape, script_json, token_label};
use crate::figures::Drawn;
use crate::number::grouped;
use crate::source::{Source, scanned_tokens};
use crate::table::html;
use crate::{Cell, Column, Table, plural, sink_table, summary, token_table};

/// What every page begins with, and no other file.
pub const MARK: &str = "<!doctype html>\n<!-- made by fathom report -->\n";

const STYLE: &str = include_str!("page/style.css");
const SCRIPT: &str = include_str!("page/script.js");

/// A run and its figures.
pub struct Part<'a> {
    /// The run.
    pub source: &'a Source,
    /// Its figures.
    pub figures: Vec<Drawn>,
    /// Where their files are, as the page names it.
    pub files: String,
}

/// The page of a report. `compared` are figures of all runs together, whose files are in `files`.
pub fn page(parts: &[Part<'_>], compared: &[Drawn], files: &str, texts: usize) -> String {
    let title = match parts {
        [part] => format!("Attention sinks of {}", part.source.name),
        _ => format!("Attention sinks of {} models", parts.len()),
    };
    let mut body = String::new();
    header(&mut body, parts, &title);
    if parts.len() > 1 {
        comparison(&mut body, parts, compared, files);
    }
    for part in parts {
        run(&mut body, part, parts.len() > 1);
    }
    methods::section(&mut body, parts);
    let data = data::page_data(parts, compared, texts);
    let hash = STANDARD.encode(Sha256::digest(SCRIPT.as_bytes()));
    format!(
        "{MARK}<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
         script-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\"><title>{}</title>\n<style>{STYLE}</style></head>\n\
         <body>\n{body}\n\
         <script type=\"application/json\" id=\"data\">{}</script>\n<script>{SCRIPT}</script>\n</body></html>\n",
        escape(&title),
        script_json(&data),
    )
}

fn header(out: &mut String, parts: &[Part<'_>], title: &str) {
    let _ = write!(out, "<header><h1>{}</h1><nav aria-label=\"Contents\"><ul>", escape(title));
    if parts.len() > 1 {
        out.push_str("<li><a href=\"#compare\">Side by side</a></li>");
    }
    for part in parts {
        let (a, name) = (&part.source.anchor, escape(&part.source.name));
        if parts.len() > 1 {
            let _ = write!(out, "<li><a href=\"#{a}\">{name}</a></li>");
        } else {
            let _ = write!(
                out,
                "<li><a href=\"#{a}-figures\">Figures</a></li><li><a href=\"#{a}-levels\">Levels and \
                 tokens</a></li><li><a href=\"#{a}-text\">The text</a></li>"
            );
        }
    }
    out.push_str("<li><a href=\"#methods\">Methods</a></li></ul></nav></header>\n<main>");
}

fn comparison(out: &mut String, parts: &[Part<'_>], compared: &[Drawn], files: &str) {
    out.push_str("<section id=\"compare\"><h2>Side by side</h2>");
    let rows: Vec<SinkRow> = parts.iter().map(|part| sink_row(part.source)).collect();
    out.push_str(&html::render(
        &sink_table(&rows),
        "Sinks by model (the paper's Table 1; X: none)",
        100,
    ));
    let rows: Vec<TokenRow> =
        parts.iter().map(|p| TokenRow::new(&p.source.name, &p.source.traces)).collect();
    out.push_str(&html::render(&token_table(&rows, 7), "Tokens of secondary sinks (Table 3)", 100));
    for drawn in compared {
        figures::figure(out, drawn, "all", files);
    }
    out.push_str("</section>\n");
}

fn sink_row(source: &Source) -> SinkRow {
    SinkRow::new(&source.name, Some(source.run.manifest().model.rope_base), &source.traces)
}

fn run(out: &mut String, part: &Part<'_>, several: bool) {
    let source = part.source;
    let a = &source.anchor;
    let heading = if several { escape(&source.name) } else { "In short".to_owned() };
    let _ = write!(out, "<section id=\"{a}\" class=\"summary\"><h2>{heading}</h2>");
    if !source.run.is_complete() {
        let of = source.planned.map_or(String::new(), |planned| format!(" of {planned}"));
        let _ = write!(
            out,
            "<p class=\"warning\"><strong>Half a run.</strong> The scan has not finished: this page shows {}{of} \
             {}, those recorded so far.</p>",
            grouped(source.traces.len()),
            if source.traces.len() == 1 && of.is_empty() { "trace" } else { "traces" }
        );
    }
    for line in summary(source.run.manifest(), &source.traces).lines() {
        let _ = write!(out, "<p>{}</p>", escape(line));
    }
    if !several {
        out.push_str(&html::render(
            &sink_table(&[sink_row(source)]),
            "The paper's Table 1 (X: none)",
            1,
        ));
    }
    if let Some(table) = most_attended(source) {
        let caption = "Tokens that draw most of the attention of later tokens, the mean over heads and layers; the \
                       last part of each trace, which few tokens look back at, is left out";
        let _ = write!(
            out,
            "<details{}><summary>Which tokens draw most attention</summary>{}</details>",
            if source.levels.entries().is_empty() { " open" } else { "" },
            html::render(&table, caption, 12)
        );
    }
    let _ = write!(
        out,
        "</section>\n<section id=\"{a}-figures\"><h2>{}</h2>",
        titled("Figures", source, several)
    );
    for drawn in &part.figures {
        figures::figure(out, drawn, a, &part.files);
    }
    let _ = write!(
        out,
        "</section>\n<section id=\"{a}-levels\"><h2>{}</h2>",
        titled("Levels and their tokens", source, several)
    );
    examples::levels(out, source);
    let _ = write!(
        out,
        "</section>\n<section id=\"{a}-text\"><h2>{}</h2>",
        titled("The text", source, several)
    );
    reader(out, source);
    out.push_str("</section>\n");
}

fn titled(what: &str, source: &Source, several: bool) -> String {
    if several { format!("{what}: {}", escape(&source.name)) } else { what.to_owned() }
}

/// Where the script shows the traces.
fn reader(out: &mut String, source: &Source) {
    let a = &source.anchor;
    if source.text.is_none() {
        out.push_str(
            "<p class=\"absent\">This run does not hold its tokens: it was scanned by an earlier version. A new scan \
             keeps them.</p>",
        );
        return;
    }
    let heat = match source.drawn {
        Some(_) => {
            "<label><input type=\"checkbox\" class=\"heat\"> shade by attention drawn</label>"
        }
        None => "",
    };
    let _ = write!(
        out,
        "<p>Primary sinks are underlined twice, secondary ones once and marked with the letter of their level, noise \
         (one layer) is dotted. Point at a sink, or walk with the buttons or the keys <kbd>n</kbd> and \
         <kbd>p</kbd>.</p>\
         <noscript><p class=\"absent\">The text is shown by a script, which this browser does not run.</p></noscript>\
         <div class=\"reader\" data-run=\"{a}\" hidden><div class=\"bar\"><label>trace <select class=\"trace\"></select>\
         </label> <label>sinks <select class=\"kind\"></select></label> \
         <button type=\"button\" class=\"prev\">◀ previous</button> \
         <button type=\"button\" class=\"next\">next ▶</button> {heat} \
         <span class=\"where\" role=\"status\"></span></div>\
         <canvas class=\"strip\" height=\"28\" role=\"img\" aria-label=\"Sinks along the trace\"></canvas>\
         <div class=\"text\" tabindex=\"0\" role=\"region\" aria-label=\"Text of the trace\"></div></div>"
    );
}

/// The tokens that draw most attention, where it was measured.
fn most_attended(source: &Source) -> Option<Table> {
    const MOST: usize = 12;
    let mut top: Vec<(usize, usize, f32)> = Vec::new();
    for (t, drawn) in source.drawn.as_ref()?.iter().enumerate() {
        let end = drawn.len().saturating_sub((drawn.len() / 20).max(16));
        let mut of: Vec<_> = drawn[..end].iter().enumerate().map(|(p, x)| (t, p, *x)).collect();
        of.sort_by(|a, b| b.2.total_cmp(&a.2));
        top.extend(of.into_iter().take(MOST));
    }
    top.sort_by(|a, b| b.2.total_cmp(&a.2));
    let mut table = Table::new(vec![
        Column::number("trace", "Trace"),
        Column::number("position", "Position"),
        Column::text("token", "Token"),
        Column::number("share", "Attention drawn"),
        Column::text("sink", "Sink?"),
    ]);
    for (t, position, x) in top.into_iter().take(MOST) {
        let trace = &source.traces[t];
        let sink = trace.sinks.iter().find(|sink| sink.position == position);
        let token = source.text.as_ref().and_then(|text| {
            let id = *text.ids.get(t)?.get(position)?;
            Some(token_label(text.texts.get(&id).map(String::as_str), id))
        });
        table.push(vec![
            Cell::new(trace.sample_index.to_string(), trace.sample_index),
            Cell::count(position),
            Cell::text(token.unwrap_or_default()),
            Cell::new(format!("{:.2} %", 100.0 * x), x),
            Cell::text(sink.map_or("no", |sink| sink.class.name())),
        ]);
    }
    (!table.is_empty()).then_some(table)
}

/// Tokens scanned in all traces.
fn all_tokens(source: &Source) -> usize {
    source.traces.iter().map(scanned_tokens).sum()
}

/// `3 traces, 1 234 tokens`
fn size(source: &Source) -> String {
    format!("{}, {}", plural(source.traces.len(), "trace"), plural(all_tokens(source), "token"))
}
