//! Figures: panels of marks on axes, drawn as SVG.
//!
//! The drawing is our own. A plotting library draws pixels or finished pictures; here every mark
//! carries its value and its series, so that one small script makes a still picture answer to a
//! pointer, a finger or a key; text takes the colour of the page it stands on, light or dark; and
//! the same panel stands alone in the page, where a phone shows one below the other, and together
//! with the others in the file for a paper. That is a few hundred lines, against megabytes of
//! script that a page would have to carry.

mod scale;
mod svg;

pub use scale::Scale;
pub use scale::short;
pub use svg::{panel_svg, place, symbol_svg, whole_svg};

use crate::Table;

/// A figure: what is drawn, how to read it, and its numbers.
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
    /// Panels beside each other in the file.
    pub columns: usize,
    /// What the page draws in place of `panels` where it can move: fewer panels, and a slider.
    pub moving: Option<Moving>,
    /// Texts it rests on.
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
    /// The figure is missing: `why`, and the command that makes it if there is one.
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

/// Where the marks of moving panels are.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Its name on the slider.
    pub label: String,
    /// What is said of each panel.
    pub notes: Vec<String>,
    /// For each panel the places of its dots in their order, in axis values; where there is none,
    /// NaN.
    pub dots: Vec<Vec<(f64, f64)>>,
    /// For each panel the ends of its line, where it has one.
    pub lines: Vec<Option<[(f64, f64); 2]>>,
}

/// What marks have in common.
#[derive(Clone, Debug)]
pub struct Series {
    /// Its name.
    pub label: String,
    /// Its colour.
    pub color: Color,
    /// Its symbol.
    pub symbol: Symbol,
}

/// The palette of Okabe and Ito, which people of every colour vision can tell apart, less the
/// yellow that white swallows; and the colour of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Color {
    /// The text's own.
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

/// Symbols tell series apart where colours do not.
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
    /// Said in a corner.
    pub note: String,
    /// Height in units of which the width is [`svg::WIDTH`].
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

/// A value in its place, and what is said of it when it is looked at.
#[derive(Clone, Debug)]
pub struct Dot {
    /// Horizontal.
    pub x: f64,
    /// Vertical.
    pub y: f64,
    /// Said of it.
    pub tip: String,
}

/// Something drawn. `series` are indices into the figure's legend.
#[derive(Clone, Debug)]
pub enum Mark {
    /// Points joined by a line.
    Line {
        /// Whose.
        series: usize,
        /// In their order; one that is not finite interrupts the line.
        dots: Vec<Dot>,
        /// Whether the line is dashed.
        dashed: bool,
    },
    /// A faint line without points.
    Thread {
        /// Whose.
        series: usize,
        /// In their order.
        points: Vec<(f64, f64)>,
    },
    /// Points.
    Dots {
        /// Whose.
        series: usize,
        /// In any order.
        dots: Vec<Dot>,
    },
    /// A range along x.
    Band {
        /// Whose.
        series: usize,
        /// (x, low, high)
        points: Vec<(f64, f64, f64)>,
    },
    /// A range at one x.
    Whisker {
        /// Whose.
        series: usize,
        /// Horizontal.
        x: f64,
        /// Low and high.
        range: (f64, f64),
    },
    /// Rectangles from the bottom.
    Bars {
        /// Whose.
        series: usize,
        /// (x from, x to, y from, dot at the top)
        bars: Vec<(f64, f64, f64, Dot)>,
    },
    /// Shaded unit squares around whole numbers.
    Cells(Vec<HeatCell>),
    /// A fitted line between two points.
    Fit {
        /// Whose.
        series: usize,
        /// Its ends.
        ends: [(f64, f64); 2],
    },
    /// A vertical rule with a name.
    Rule {
        /// Where.
        x: f64,
        /// Its name.
        label: String,
    },
    /// A horizontal rule with a name.
    Level {
        /// Where.
        y: f64,
        /// Its name.
        label: String,
    },
}

/// A cell of a heat map.
#[derive(Clone, Debug)]
pub struct HeatCell {
    /// Its middle, and what is said of it.
    pub dot: Dot,
    /// 0 to 1.
    pub shade: f64,
    /// Written in it.
    pub text: String,
    /// Where it leads.
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

    /// Colours of things that come one after the other.
    pub const CYCLE: [Color; 5] =
        [Color::Blue, Color::Green, Color::Orange, Color::Purple, Color::Sky];
}

impl Symbol {
    /// Symbols of things that come one after the other.
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

    /// The `index`-th of several.
    pub fn cycle(label: impl Into<String>, index: usize) -> Series {
        Series::new(
            label,
            Color::CYCLE[index % Color::CYCLE.len()],
            Symbol::CYCLE[index % Symbol::CYCLE.len()],
        )
    }
}

impl Panel {
    /// A panel of the usual height without marks.
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
