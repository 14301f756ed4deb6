//! Figures: panels of marks on axes, drawn as SVG.
//!
//! We do not use a plotting library: those draw pixels or static pictures, or need megabytes of
//! script in the page. Here every mark carries its value and its series, so that one small script
//! makes the SVG interactive. Text takes the colour of the page, light or dark. In the page each
//! panel is an SVG of its own; in the file for a paper, all panels of a figure are one SVG.

mod scale;
mod svg;

pub use scale::Scale;
pub use scale::short;
pub use svg::{panel_svg, place, symbol_svg, whole_svg};

use crate::Table;

/// A figure: its panels, how to read them, and its numbers.
#[derive(Clone, Debug)]
pub struct Figure {
    /// Its name and titles.
    pub head: Head,
    /// How to read it.
    pub reading: &'static str,
    /// What it shows, in sentences.
    pub findings: Vec<String>,
    /// The series its marks belong to.
    pub legend: Vec<Series>,
    /// The panels.
    pub panels: Vec<Panel>,
    /// Panels per row in the file.
    pub columns: usize,
    /// Panels with a slider, which the page shows instead of `panels`.
    pub moving: Option<Moving>,
    /// Texts it compares.
    pub quotes: Vec<Quote>,
    /// Its numbers.
    pub data: Table,
}

/// Name and titles of a figure.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// Name of its files: `fig1-norms`.
    pub name: &'static str,
    /// Its title.
    pub title: &'static str,
    /// The figure of the paper it corresponds to: `Figure 1`.
    pub paper: &'static str,
}

impl Head {
    /// States that the figure is missing: why, and the command that makes it, if there is one.
    pub fn absent(self, why: impl Into<String>, command: Option<String>) -> Absent {
        Absent { head: self, why: why.into(), command }
    }
}

/// Two texts to compare.
#[derive(Clone, Debug)]
pub struct Quote {
    /// What is compared.
    pub title: String,
    /// Label and text of the first.
    pub before: (&'static str, String),
    /// Label and text of the second.
    pub after: (&'static str, String),
}

/// Why there is no figure.
#[derive(Clone, Debug)]
pub struct Absent {
    /// Its name and titles.
    pub head: Head,
    /// Why, in one sentence.
    pub why: String,
    /// The command that makes it, if there is one.
    pub command: Option<String>,
}

/// Panels whose marks move with a slider.
#[derive(Clone, Debug)]
pub struct Moving {
    /// What the slider chooses: `layer`.
    pub what: &'static str,
    /// The panels, showing the frame `first`.
    pub panels: Vec<Panel>,
    /// The frame shown first.
    pub first: usize,
    /// All frames.
    pub frames: Vec<Frame>,
}

/// The positions of the marks of moving panels at one position of the slider.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Its label at the slider.
    pub label: String,
    /// The note of each panel.
    pub notes: Vec<String>,
    /// For each panel the positions of its dots in order, in axis values; NaN hides a dot.
    pub dots: Vec<Vec<(f64, f64)>>,
    /// For each panel the ends of its line, if it has one.
    pub lines: Vec<Option<[(f64, f64); 2]>>,
}

/// A series of marks, as the legend shows it.
#[derive(Clone, Debug)]
pub struct Series {
    /// Its name.
    pub label: String,
    /// Its colour.
    pub color: Color,
    /// Its symbol.
    pub symbol: Symbol,
}

/// The palette of Okabe and Ito, which is safe for all kinds of colour vision, without its yellow,
/// which is too faint on white; and the colour of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Color {
    /// The colour of the text.
    Ink,
    /// Vermillion.
    Vermillion,
    /// Blue.
    Blue,
    /// Bluish green.
    Green,
    /// Reddish purple.
    Purple,
    /// Orange.
    Orange,
    /// Sky blue.
    Sky,
    /// Grey.
    Grey,
}

/// The symbol of a series, which distinguishes it without colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Symbol {
    /// ●
    Dot,
    /// ■
    Square,
    /// ▲
    Triangle,
    /// ◆
    Diamond,
    /// ▼
    Down,
    /// ✚
    Plus,
}

/// One pair of axes.
#[derive(Clone, Debug)]
pub struct Panel {
    /// Its title.
    pub title: String,
    /// Horizontal.
    pub x: Axis,
    /// Vertical.
    pub y: Axis,
    /// What is drawn, in this order.
    pub marks: Vec<Mark>,
    /// A note in a corner.
    pub note: String,
    /// Height, in the units of [`svg::WIDTH`].
    pub height: f64,
}

/// An axis.
#[derive(Clone, Debug)]
pub struct Axis {
    /// What it measures, with the unit.
    pub label: String,
    /// Its scale.
    pub scale: Scale,
}

/// A value at its position, with the text of its tooltip.
#[derive(Clone, Debug)]
pub struct Dot {
    /// Horizontal.
    pub x: f64,
    /// Vertical.
    pub y: f64,
    /// Text of the tooltip.
    pub tip: String,
}

/// A mark. `series` are indices into the figure's legend.
#[derive(Clone, Debug)]
pub enum Mark {
    /// Points joined by a line.
    Line {
        /// Its series.
        series: usize,
        /// In order; one that is not finite interrupts the line.
        dots: Vec<Dot>,
        /// Whether the line is dashed.
        dashed: bool,
    },
    /// A faint line without points.
    ThinLine {
        /// Its series.
        series: usize,
        /// In order.
        points: Vec<(f64, f64)>,
    },
    /// Points.
    Dots {
        /// Its series.
        series: usize,
        /// In any order.
        dots: Vec<Dot>,
    },
    /// A range along x.
    Band {
        /// Its series.
        series: usize,
        /// (x, low, high)
        points: Vec<(f64, f64, f64)>,
    },
    /// A range at one x.
    Whisker {
        /// Its series.
        series: usize,
        /// Horizontal.
        x: f64,
        /// Low and high.
        range: (f64, f64),
    },
    /// Rectangles from the bottom.
    Bars {
        /// Its series.
        series: usize,
        /// (x from, x to, y from, dot at the top)
        bars: Vec<(f64, f64, f64, Dot)>,
    },
    /// Shaded unit squares, centred at whole numbers.
    Cells(Vec<HeatCell>),
    /// A fitted line between two points.
    Fit {
        /// Its series.
        series: usize,
        /// Its ends.
        ends: [(f64, f64); 2],
    },
    /// A vertical rule with a name.
    Rule {
        /// Its position.
        x: f64,
        /// Its name.
        label: String,
    },
    /// A horizontal rule with a name.
    Level {
        /// Its position.
        y: f64,
        /// Its name.
        label: String,
    },
}

/// A cell of a heat map.
#[derive(Clone, Debug)]
pub struct HeatCell {
    /// Its centre, with the tooltip.
    pub dot: Dot,
    /// From 0 to 1.
    pub shade: f64,
    /// Text in the cell.
    pub text: String,
    /// Target of its link.
    pub link: Option<String>,
}

impl Color {
    /// As SVG and CSS write it.
    pub fn css(self) -> &'static str {
        match self {
            Color::Ink => "currentColor",
            Color::Vermillion => "#D55E00",
            Color::Blue => "#0072B2",
            Color::Green => "#009E73",
            Color::Purple => "#CC79A7",
            Color::Orange => "#E69F00",
            Color::Sky => "#56B4E9",
            Color::Grey => "#888888",
        }
    }

    /// Colours of numbered series, in order.
    pub const CYCLE: [Color; 5] =
        [Color::Blue, Color::Green, Color::Orange, Color::Purple, Color::Sky];
}

impl Symbol {
    /// Symbols of numbered series, in order.
    pub const CYCLE: [Symbol; 6] = [
        Symbol::Square,
        Symbol::Triangle,
        Symbol::Diamond,
        Symbol::Down,
        Symbol::Plus,
        Symbol::Dot,
    ];
}

impl Series {
    /// A series.
    pub fn new(label: impl Into<String>, color: Color, symbol: Symbol) -> Series {
        Series { label: label.into(), color, symbol }
    }

    /// A numbered series: its colour and symbol follow from `index`.
    pub fn cycle(label: impl Into<String>, index: usize) -> Series {
        Series::new(
            label,
            Color::CYCLE[index % Color::CYCLE.len()],
            Symbol::CYCLE[index % Symbol::CYCLE.len()],
        )
    }
}

impl Panel {
    /// A panel of the default height, without marks.
    pub fn new(title: impl Into<String>, x: Axis, y: Axis) -> Panel {
        Panel { title: title.into(), x, y, marks: Vec::new(), note: String::new(), height: 240.0 }
    }
}

impl Axis {
    /// An axis.
    pub fn new(label: impl Into<String>, scale: Scale) -> Axis {
        Axis { label: label.into(), scale }
    }

    /// The layers of a model.
    pub fn layers(layers: usize) -> Axis {
        Axis::new("layer", Scale::whole(0, layers.saturating_sub(1)))
    }
}

impl Dot {
    /// A dot.
    pub fn new(x: f64, y: f64, tip: impl Into<String>) -> Dot {
        Dot { x, y, tip: tip.into() }
    }
}
