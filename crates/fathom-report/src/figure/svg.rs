//! Panels as SVG. All text that comes from runs goes through [`escape`].

use std::fmt::Write;

use super::{Axis, Dot, Figure, HeatCell, Mark, Panel, Series, Symbol};
use crate::escape::escape;

/// Width of a panel in SVG units. Text of 11 units is then readable on a phone.
pub const WIDTH: f64 = 344.0;
/// Margins around the axes.
const LEFT: f64 = 50.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 26.0;
const BOTTOM: f64 = 40.0;

/// One panel, as in the page. `label` describes it to screen readers.
pub fn panel_svg(panel: &Panel, legend: &[Series], label: &str) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {}\" role=\"{}\" tabindex=\"0\" aria-label=\"{}\">{}</svg>",
        panel.height,
        if linked(panel) { "group" } else { "img" },
        escape(label),
        Drawing::new(panel, legend).draw()
    )
}

/// Whether a panel has links.
fn linked(panel: &Panel) -> bool {
    let leads = |mark: &Mark| match mark {
        Mark::Cells(cells) => cells.iter().any(|cell| cell.link.is_some()),
        _ => false,
    };
    panel.marks.iter().any(leads)
}

/// A series' symbol, as in the page's legend.
pub fn symbol_svg(series: &Series) -> String {
    format!(
        "<svg class=\"symbol\" viewBox=\"-7 -7 14 14\" aria-hidden=\"true\"><path d=\"{}\" \
         fill=\"{}\"/></svg>",
        symbol(series.symbol, 5.0),
        series.color.css()
    )
}

/// The whole figure in one file, with title and legend.
pub fn whole_svg(figure: &Figure) -> String {
    let columns = figure.columns.min(figure.panels.len()).max(1);
    let width = columns as f64 * WIDTH + 16.0;
    let (legend, legend_height) = legend_svg(&figure.legend, width);
    let mut body = String::new();
    let mut top = 34.0;
    for row in figure.panels.chunks(columns) {
        for (column, panel) in row.iter().enumerate() {
            let left = 8.0 + column as f64 * WIDTH;
            let drawing = Drawing::new(panel, &figure.legend).draw();
            let _ = write!(body, "<g transform=\"translate({left} {top})\">{drawing}</g>");
        }
        top += row.iter().map(|panel| panel.height).fold(0.0, f64::max) + 8.0;
    }
    let height = top + legend_height;
    let title = escape(figure.head.title);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" color=\"#1a1a1a\" \
         font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\">\
         <title>{title} ({})</title><desc>{}</desc>\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\
         <text x=\"12\" y=\"22\" font-size=\"15\" font-weight=\"bold\" \
         fill=\"currentColor\">{title}</text>\
         {body}<g transform=\"translate(0 {top})\">{legend}</g></svg>\n",
        escape(figure.head.paper),
        escape(figure.reading),
    )
}

/// The legend in rows, and its height.
fn legend_svg(legend: &[Series], width: f64) -> (String, f64) {
    let (mut body, mut x, mut y) = (String::new(), 14.0, 8.0);
    for series in legend {
        let wide = 24.0 + 6.2 * series.label.chars().count() as f64;
        if x + wide > width && x > 14.0 {
            (x, y) = (14.0, y + 18.0);
        }
        let _ = write!(
            body,
            "<path d=\"{}\" fill=\"{}\" transform=\"translate({:.1} {y:.1})\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" font-size=\"11\" fill=\"currentColor\">{}</text>",
            symbol(series.symbol, 4.5),
            series.color.css(),
            x + 5.0,
            x + 14.0,
            y + 4.0,
            escape(&series.label)
        );
        x += wide;
    }
    (body, if legend.is_empty() { 0.0 } else { y + 16.0 })
}

/// A symbol around the origin.
fn symbol(symbol: Symbol, r: f64) -> String {
    let s = 0.86 * r;
    match symbol {
        Symbol::Dot => format!(
            "M-{r:.1} 0a{r:.1} {r:.1} 0 1 0 {0:.1} 0a{r:.1} {r:.1} 0 1 0 -{0:.1} 0z",
            2.0 * r
        ),
        Symbol::Square => format!("M-{s:.1} -{s:.1}H{s:.1}V{s:.1}H-{s:.1}z"),
        Symbol::Triangle => format!("M0 -{r:.1}L{r:.1} {s:.1}H-{r:.1}z"),
        Symbol::Diamond => format!("M0 -{0:.1}L{0:.1} 0L0 {0:.1}L-{0:.1} 0z", 1.15 * r),
        Symbol::Down => format!("M0 {r:.1}L{r:.1} -{s:.1}H-{r:.1}z"),
        Symbol::Plus => {
            let t = 0.36 * r;
            format!(
                "M-{t:.1} -{r:.1}H{t:.1}V-{t:.1}H{r:.1}V{t:.1}H{t:.1}V{r:.1}\
                 H-{t:.1}V{t:.1}H-{r:.1}V-{t:.1}H-{t:.1}z"
            )
        }
    }
}

/// The Viridis colour map at five points, interpolated in between; dark is low.
fn shade(part: f64) -> String {
    const STOPS: [[f64; 3]; 5] = [
        [68.0, 1.0, 84.0],
        [59.0, 82.0, 139.0],
        [33.0, 145.0, 140.0],
        [94.0, 201.0, 98.0],
        [253.0, 231.0, 37.0],
    ];
    let at = 4.0 * part.clamp(0.0, 1.0);
    let low = (at.floor() as usize).min(3);
    let mix = |c: usize| STOPS[low][c] + (at - low as f64) * (STOPS[low + 1][c] - STOPS[low][c]);
    format!("rgb({:.0},{:.0},{:.0})", mix(0), mix(1), mix(2))
}

/// A panel while it is drawn.
struct Drawing<'a> {
    panel: &'a Panel,
    legend: &'a [Series],
    out: String,
}

impl<'a> Drawing<'a> {
    fn new(panel: &'a Panel, legend: &'a [Series]) -> Drawing<'a> {
        Drawing { panel, legend, out: String::new() }
    }

    fn draw(mut self) -> String {
        self.axes();
        for mark in &self.panel.marks {
            self.mark(mark);
        }
        if !self.panel.note.is_empty() {
            self.text(LEFT, 27.0, "start", 10.5, "note", &self.panel.note);
        }
        self.out
    }

    /// Top of the axes: below the title, the note and the names of rules, as far as there are any.
    fn top(&self) -> f64 {
        let rules = self.panel.marks.iter().any(|mark| matches!(mark, Mark::Rule { .. }));
        let lines = [!self.panel.note.is_empty(), rules];
        TOP + 10.0 * lines.into_iter().filter(|line| *line).count() as f64
    }

    fn x(&self, value: f64) -> f64 {
        LEFT + self.panel.x.scale.place(value) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        let bottom = self.panel.height - BOTTOM;
        bottom - self.panel.y.scale.place(value) * (bottom - self.top())
    }

    fn color(&self, series: usize) -> &'static str {
        self.legend.get(series).map_or("currentColor", |series| series.color.css())
    }

    fn text(&mut self, x: f64, y: f64, anchor: &str, size: f64, class: &str, text: &str) {
        let _ = write!(
            self.out,
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" \
             font-size=\"{size}\" \
             fill=\"currentColor\">{}</text>",
            escape(text)
        );
    }

    fn axes(&mut self) {
        let Panel { x, y, height, .. } = self.panel;
        let (right, bottom, top) = (WIDTH - RIGHT, height - BOTTOM, self.top());
        self.text(LEFT, 14.0, "start", 12.0, "title", &self.panel.title);
        for (value, name) in thinned(x, WIDTH - LEFT - RIGHT) {
            let at = self.x(value);
            let _ = write!(
                self.out,
                "<path d=\"M{at:.1} {top}V{bottom}\" stroke=\"currentColor\" \
                 stroke-opacity=\".1\"/>"
            );
            self.text(at, bottom + 14.0, "middle", 10.5, "tick", &name);
        }
        for (value, name) in y.scale.ticks() {
            let at = self.y(value);
            let _ = write!(
                self.out,
                "<path d=\"M{LEFT} {at:.1}H{right}\" stroke=\"currentColor\" \
                 stroke-opacity=\".1\"/>"
            );
            self.text(LEFT - 5.0, at + 3.5, "end", 10.5, "tick", &name);
        }
        let _ = write!(
            self.out,
            "<path d=\"M{LEFT} {top}V{bottom}H{right}\" fill=\"none\" stroke=\"currentColor\" \
             stroke-opacity=\".6\"/>"
        );
        self.text((LEFT + right) / 2.0, height - 8.0, "middle", 11.0, "axis", &x.label);
        let middle = (top + bottom) / 2.0;
        let _ = write!(
            self.out,
            "<text class=\"axis\" transform=\"translate(11 {middle:.1}) rotate(-90)\" \
             text-anchor=\"middle\" \
             font-size=\"11\" fill=\"currentColor\">{}</text>",
            escape(&y.label)
        );
    }

    fn mark(&mut self, mark: &Mark) {
        match mark {
            Mark::Line { series, dots, dashed } => {
                let points = dots.iter().map(|dot| (dot.x, dot.y));
                let path = self.path(points);
                let dash = if *dashed { " stroke-dasharray=\"5 3\"" } else { "" };
                self.open(*series);
                let _ = write!(
                    self.out,
                    "<path d=\"{path}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.7\"{dash}/>",
                    self.color(*series)
                );
                let size = if dots.len() > 40 { 1.6 } else { 2.6 };
                self.dots(*series, dots, size, 1.0);
                self.out.push_str("</g>");
            }
            Mark::ThinLine { series, points } => {
                let path = self.path(points.iter().copied());
                self.open(*series);
                let _ = write!(
                    self.out,
                    "<path d=\"{path}\" fill=\"none\" stroke=\"{}\" stroke-opacity=\".25\"/></g>",
                    self.color(*series)
                );
            }
            Mark::Dots { series, dots } => {
                self.open(*series);
                self.dots(*series, dots, 3.2, 0.75);
                self.out.push_str("</g>");
            }
            Mark::Band { series, points } => {
                let upper = points.iter().map(|(x, _, high)| (*x, *high));
                let lower = points.iter().rev().map(|(x, low, _)| (*x, *low));
                let path = self.path(upper.chain(lower));
                self.open(*series);
                let color = self.color(*series);
                let _ = write!(
                    self.out,
                    "<path d=\"{path}Z\" fill=\"{color}\" fill-opacity=\".2\"/></g>"
                );
            }
            Mark::Whisker { series, x, range } => {
                let (x, low, high) = (self.x(*x), self.y(range.0), self.y(range.1));
                self.open(*series);
                let color = self.color(*series);
                let _ = write!(
                    self.out,
                    "<path d=\"M{x:.1} {low:.1}V{high:.1}\" stroke=\"{color}\" \
                     stroke-opacity=\".6\"/></g>"
                );
            }
            Mark::Bars { series, bars } => {
                self.open(*series);
                let color = self.color(*series);
                for (from, to, base, dot) in bars {
                    let (left, right) = (self.x(*from), self.x(*to));
                    let (top, bottom) = (self.y(dot.y), self.y(*base));
                    let _ = write!(
                        self.out,
                        "<rect class=\"p\" x=\"{:.1}\" y=\"{top:.1}\" width=\"{:.1}\" \
                         height=\"{:.1}\" \
                         fill=\"{color}\" data-t=\"{}\"/>",
                        left + 0.5,
                        (right - left - 1.0).max(0.5),
                        (bottom - top).max(0.0),
                        escape(&dot.tip)
                    );
                }
                self.out.push_str("</g>");
            }
            Mark::Cells(cells) => cells.iter().for_each(|cell| self.cell(cell)),
            Mark::Fit { series, ends: [a, b] } => {
                let (x1, y1, x2, y2) = (self.x(a.0), self.y(a.1), self.x(b.0), self.y(b.1));
                self.open(*series);
                let color = self.color(*series);
                let _ = write!(
                    self.out,
                    "<path class=\"fit\" d=\"M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}\" stroke=\"{color}\" \
                     stroke-width=\"1.7\"/></g>"
                );
            }
            Mark::Rule { x, label } => {
                let (at, bottom) = (self.x(*x), self.panel.height - BOTTOM);
                let top = self.top();
                let _ = write!(
                    self.out,
                    "<path d=\"M{at:.1} {top}V{bottom}\" stroke=\"currentColor\" \
                     stroke-opacity=\".5\" \
                     stroke-dasharray=\"2 3\"/>"
                );
                let (anchor, nudge) = if at > WIDTH * 0.6 { ("end", -3.0) } else { ("start", 3.0) };
                self.text(at + nudge, top - 3.0, anchor, 10.0, "rule", label);
            }
            Mark::Level { y, label } => {
                let (at, right) = (self.y(*y), WIDTH - RIGHT);
                let _ = write!(
                    self.out,
                    "<path d=\"M{LEFT} {at:.1}H{right}\" stroke=\"currentColor\" \
                     stroke-opacity=\".5\" \
                     stroke-dasharray=\"2 3\"/>"
                );
                self.text(LEFT + 4.0, at - 3.0, "start", 10.0, "rule", label);
            }
        }
    }

    fn open(&mut self, series: usize) {
        let _ = write!(self.out, "<g data-s=\"{series}\">");
    }

    fn dots(&mut self, series: usize, dots: &[Dot], size: f64, opacity: f64) {
        let shape = self.legend.get(series).map_or(Symbol::Dot, |series| series.symbol);
        let (path, color) = (symbol(shape, size), self.color(series));
        for dot in dots {
            let (x, y) = (self.x(dot.x), self.y(dot.y));
            let place = match x.is_finite() && y.is_finite() {
                true => format!("translate({x:.1} {y:.1})"),
                false => "translate(-999 -999)".to_owned(), // moving panels address dots by number
            };
            let _ = write!(
                self.out,
                "<path class=\"p\" d=\"{path}\" fill=\"{color}\" fill-opacity=\"{opacity}\" \
                 transform=\"{place}\" data-t=\"{}\"/>",
                escape(&dot.tip)
            );
        }
    }

    fn cell(&mut self, cell: &HeatCell) {
        let HeatCell { dot, shade: part, text, link } = cell;
        let (left, right) = (self.x(dot.x - 0.5), self.x(dot.x + 0.5));
        let (bottom, top) = (self.y(dot.y - 0.5), self.y(dot.y + 0.5));
        if let Some(link) = link {
            let _ = write!(self.out, "<a href=\"{}\">", escape(link));
        }
        let _ = write!(
            self.out,
            "<rect class=\"p\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" \
             fill=\"{}\" \
             data-t=\"{}\"/>",
            (right - left - 0.5).max(0.8),
            (bottom - top - 0.5).max(0.8),
            shade(*part),
            escape(&dot.tip)
        );
        if !text.is_empty()
            && bottom - top > 11.0
            && right - left > 6.0 * text.chars().count() as f64
        {
            let ink = if *part > 0.55 { "#111" } else { "#fff" };
            let _ = write!(
                self.out,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"9.5\" \
                 fill=\"{ink}\" \
                 pointer-events=\"none\">{}</text>",
                (left + right) / 2.0,
                (top + bottom) / 2.0 + 3.3,
                escape(text)
            );
        }
        if link.is_some() {
            self.out.push_str("</a>");
        }
    }

    /// Points without a position interrupt the path.
    fn path(&self, points: impl Iterator<Item = (f64, f64)>) -> String {
        let (mut path, mut pen) = (String::new(), 'M');
        for (x, y) in points {
            let (x, y) = (self.x(x), self.y(y));
            if x.is_finite() && y.is_finite() {
                let _ = write!(path, "{pen}{x:.1} {y:.1}");
                pen = 'L';
            } else {
                pen = 'M';
            }
        }
        path
    }
}

/// Every n-th tick of a horizontal axis, so that labels do not overlap.
fn thinned(axis: &Axis, width: f64) -> Vec<(f64, String)> {
    let ticks = axis.scale.ticks();
    let longest = ticks.iter().map(|(_, name)| name.chars().count()).max().unwrap_or(1);
    let room = (width / (6.0 * (longest as f64 + 1.5))).max(1.0) as usize;
    let every = ticks.len().div_ceil(room).max(1);
    ticks.into_iter().step_by(every).collect()
}

/// The position of a value in a panel, in the panel's units, for marks that move.
pub fn place(panel: &Panel, (x, y): (f64, f64)) -> (f64, f64) {
    let drawing = Drawing::new(panel, &[]);
    (drawing.x(x), drawing.y(y))
}
