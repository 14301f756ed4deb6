//! Figures in the page.

use std::fmt::Write;

use crate::escape::escape;
use crate::figure::{Absent, Figure, Mark, Panel, panel_svg, symbol_svg};
use crate::figures::MaybeFigure;
use crate::table::html;

/// Maximum number of rows of a figure's numbers in the page; the CSV file has all.
const ROWS: usize = 120;

/// The figures of a run, then in one line those that have nothing to show, and in another those
/// that a command makes, with the reasons. `anchor` is that of the run, `files` the directory of
/// its files.
pub(super) fn figures(out: &mut String, figures: &[MaybeFigure], anchor: &str, files: &str) {
    figures.iter().flatten().for_each(|figure| present(out, figure, anchor, files));
    let absent = || figures.iter().filter_map(|figure| figure.as_ref().err());
    let (made, nothing): (Vec<_>, Vec<_>) = absent().partition(|absent| absent.command.is_some());
    line(out, "Nothing to show", &nothing);
    line(out, "Not computed", &made);
}

/// A line with the titles of missing figures by reason, if there are any.
fn line(out: &mut String, what: &str, missing: &[&Absent]) {
    let mut by_reason: Vec<(&str, Vec<String>)> = Vec::new();
    for absent in missing {
        match by_reason.iter_mut().find(|(why, _)| *why == absent.why) {
            Some((_, same)) => same.push(named(absent)),
            None => by_reason.push((&absent.why, vec![named(absent)])),
        }
    }
    let reasons =
        by_reason.iter().map(|(why, titles)| format!("{} ({})", titles.join(", "), escape(why)));
    let reasons: Vec<String> = reasons.collect();
    if !reasons.is_empty() {
        let _ = writeln!(out, "<p class=\"absent\">{what}: {}</p>", reasons.join(" "));
    }
}

/// The title of a missing figure, and the command that makes it, if there is one.
fn named(absent: &Absent) -> String {
    let title = escape(absent.head.title);
    match &absent.command {
        None => title,
        Some(command) => format!("{title} <code>{}</code>", escape(command)),
    }
}

fn present(out: &mut String, figure: &Figure, anchor: &str, files: &str) {
    let id = format!("{anchor}-{}", figure.head.name);
    let _ = write!(
        out,
        "<figure class=\"fig\" id=\"{id}\"><h3>{} <small>{}</small></h3>\
         <p class=\"reading\">{}</p>",
        escape(figure.head.title),
        escape(figure.head.paper),
        escape(figure.reading)
    );
    if !figure.findings.is_empty() {
        out.push_str("<ul class=\"findings\">");
        for finding in &figure.findings {
            let _ = write!(out, "<li>{}</li>", escape(finding));
        }
        out.push_str("</ul>");
    }
    if !figure.legend.is_empty() {
        out.push_str(
            "<div class=\"legend\" role=\"group\" aria-label=\"Series; press to hide or show\">",
        );
        for (series, entry) in figure.legend.iter().enumerate() {
            let _ = write!(
                out,
                "<button type=\"button\" data-s=\"{series}\" aria-pressed=\"true\">{}{}</button>",
                symbol_svg(entry),
                escape(&entry.label)
            );
        }
        out.push_str("</div>");
    }
    let panels = match &figure.moving {
        Some(moving) => {
            let last = moving.frames.len().saturating_sub(1);
            let label = moving.frames.get(moving.first).map_or("", |frame| &frame.label);
            let _ = write!(
                out,
                "<div class=\"slider\" hidden><label>{} <input type=\"range\" min=\"0\" \
                 max=\"{last}\" value=\"{}\" data-frames=\"{id}\"></label> \
                 <output>{}</output></div>",
                moving.what,
                moving.first,
                escape(label)
            );
            &moving.panels
        }
        None => &figure.panels,
    };
    let _ = write!(out, "<div class=\"panels c{}\">", figure.columns.min(4));
    for panel in panels {
        let label = described(figure, panel);
        let _ =
            write!(out, "<div class=\"panel\">{}</div>", panel_svg(panel, &figure.legend, &label));
    }
    out.push_str("</div>");
    for quote in &figure.quotes {
        let _ = write!(out, "<div class=\"quote\"><h4>{}</h4>", escape(&quote.title));
        for (name, text) in [&quote.before, &quote.after] {
            let _ = write!(out, "<div><small>{name}</small><p>{}</p></div>", escape(text));
        }
        out.push_str("</div>");
    }
    let rows = figure.data.len();
    let shown =
        if rows > ROWS { format!(" (the first {ROWS} of {rows} rows)") } else { String::new() };
    let _ = writeln!(
        out,
        "<details><summary>Numbers{shown}</summary>{}</details>\
         <p class=\"files\"><code>{2}/{1}.svg</code>, <code>{2}/{1}.csv</code></p></figure>",
        html::render(&figure.data, figure.head.title, ROWS),
        figure.head.name,
        escape(files),
    );
}

/// A description of a panel for screen readers.
fn described(figure: &Figure, panel: &Panel) -> String {
    let dots = panel.marks.iter().map(|mark| match mark {
        Mark::Line { dots, .. } | Mark::Dots { dots, .. } => dots.len(),
        Mark::Bars { bars, .. } => bars.len(),
        Mark::Cells(cells) => cells.len(),
        _ => 0,
    });
    let count: usize = dots.sum();
    let note = if panel.note.is_empty() { String::new() } else { format!(" {}.", panel.note) };
    format!(
        "{}: {}. {} against {}.{note} {count} values; arrow keys read them, the table below lists \
         them.",
        figure.head.title, panel.title, panel.y.label, panel.x.label
    )
}
