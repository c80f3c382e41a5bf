//! A chart of horizontal bars in groups, as SVG; for examples/bench, too.

use std::fmt::Write as _;

/// For light and for dark backgrounds alike; told apart also by who cannot tell red from green.
const COLOURS: [&str; 7] = [
    "#2a9d8f", "#e76f51", "#e9a227", "#4c78d0", "#a05fc0", "#8a8f98", "#c0566f",
];

const STYLE: &str = "\
text { font: 12px system-ui, sans-serif; fill: #222 }
.title { font-size: 15px; font-weight: 600 }
.group { font-weight: 600 }
.quiet { fill: #666 }
.grid { stroke: #bbb; stroke-width: 1; stroke-dasharray: 2 3 }
@media (prefers-color-scheme: dark) {
  text { fill: #eee }
  .quiet { fill: #aaa }
  .grid { stroke: #555 }
}";

const WIDTH: f64 = 860.0;
/// Left of the bars, and right of the longest.
const LEFT: f64 = 190.0;
const RIGHT: f64 = 110.0;
const TOP: f64 = 64.0;
const BAR: f64 = 14.0;
const STEP: f64 = 18.0;
const GAP: f64 = 14.0;

/// What is to be drawn.
#[derive(Debug)]
pub(crate) struct Chart<'a> {
    pub(crate) title: &'a str,
    /// What the scale is.
    pub(crate) note: &'a str,
    pub(crate) scale: Scale,
    pub(crate) groups: Vec<Group<'a>>,
}

#[derive(Debug)]
pub(crate) struct Group<'a> {
    pub(crate) name: &'a str,
    pub(crate) bars: Vec<Bar<'a>>,
}

#[derive(Debug)]
pub(crate) struct Bar<'a> {
    pub(crate) name: &'a str,
    /// 0 is no bar.
    pub(crate) value: f64,
    /// Bars of a number have a colour.
    pub(crate) colour: usize,
    /// Beside the bar, and less loudly behind that.
    pub(crate) label: String,
    pub(crate) aside: String,
}

/// From the values to the lengths of bars.
#[allow(dead_code, reason = "each program has its own")]
#[derive(Clone, Copy, Debug)]
pub(crate) enum Scale {
    /// From zero, with a line at each whole number.
    Linear,
    /// From below the smallest to above the largest, in powers of ten.
    Logarithmic,
}

/// Where the lines are, and where values end up: from 0 to 1.
struct Axis {
    lines: Vec<f64>,
    low: f64,
    high: f64,
    scale: Scale,
}

impl Axis {
    fn new(scale: Scale, values: impl Iterator<Item = f64> + Clone) -> Self {
        let some = values.filter(|&value| value > 0.0);
        let (low, high, first) = match scale {
            Scale::Linear => (0.0, some.fold(1.0, f64::max).ceil(), 0.0),
            Scale::Logarithmic => {
                let low = some.clone().fold(1.0, f64::min).log10().floor() - 1.0;
                (low, some.fold(10.0, f64::max).log10().ceil(), low)
            }
        };
        let mut lines = Vec::new();
        let mut line = first + 1.0;
        while line <= high {
            lines.push(match scale {
                Scale::Linear => line,
                Scale::Logarithmic => 10_f64.powf(line),
            });
            line += 1.0;
        }
        Self {
            lines,
            low,
            high,
            scale,
        }
    }

    fn x(&self, value: f64) -> f64 {
        let place = match self.scale {
            Scale::Linear => value,
            Scale::Logarithmic => value.log10(),
        };
        LEFT + (place - self.low) / (self.high - self.low) * (WIDTH - LEFT - RIGHT)
    }
}

impl Chart<'_> {
    pub(crate) fn svg(&self) -> String {
        let all = self.groups.iter().flat_map(|group| &group.bars);
        let axis = Axis::new(self.scale, all.map(|bar| bar.value));
        let (mut bars, mut y) = (String::new(), TOP);
        for (number, group) in self.groups.iter().enumerate() {
            if number > 0 {
                y += GAP;
            }
            let _ = writeln!(
                bars,
                r#"<text class="group" x="12" y="{:.0}">{}</text>"#,
                y + BAR - 3.0,
                escape(group.name)
            );
            for bar in &group.bars {
                bar.draw(&mut bars, &axis, y);
                y += STEP;
            }
        }
        let mut grid = String::new();
        for &line in &axis.lines {
            let at = axis.x(line);
            let _ = writeln!(
                grid,
                r#"<line class="grid" x1="{at:.1}" x2="{at:.1}" y1="{:.0}" y2="{y:.0}"/><text class="quiet" x="{at:.1}" y="{:.0}" text-anchor="middle">{}</text>"#,
                TOP - 6.0,
                TOP - 10.0,
                label(line)
            );
        }
        let height = y + 12.0;
        let (title, note) = (escape(self.title), escape(self.note));
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" width=\"{WIDTH}\" \
             height=\"{height:.0}\" role=\"img\" aria-label=\"{title}\">\n<style>\n{STYLE}\n</style>\n\
             <text class=\"title\" x=\"12\" y=\"24\">{title}</text>\n\
             <text class=\"quiet\" x=\"{:.0}\" y=\"24\" text-anchor=\"end\">{note}</text>\n\
             {grid}{bars}</svg>\n",
            WIDTH - 12.0
        )
    }
}

impl Bar<'_> {
    fn draw(&self, svg: &mut String, axis: &Axis, y: f64) {
        let text_y = y + BAR - 3.0;
        let end = if self.value > 0.0 {
            axis.x(self.value)
        } else {
            LEFT
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            svg,
            r#"<text class="quiet" x="{:.0}" y="{text_y:.0}" text-anchor="end">{}</text>"#,
            LEFT - 8.0,
            escape(self.name)
        );
        if self.value > 0.0 {
            let (width, colour) = (end - LEFT, COLOURS[self.colour % COLOURS.len()]);
            let _ = writeln!(
                svg,
                r#"<rect x="{LEFT}" y="{y:.0}" width="{width:.1}" height="{BAR}" rx="2" fill="{colour}"/>"#
            );
        }
        let aside = if self.aside.is_empty() {
            String::new()
        } else {
            format!(
                r#"<tspan class="quiet" dx="5">{}</tspan>"#,
                escape(&self.aside)
            )
        };
        let _ = writeln!(
            svg,
            r#"<text x="{:.1}" y="{text_y:.0}">{}{aside}</text>"#,
            end + 6.0,
            escape(&self.label)
        );
    }
}

/// A number with as many digits as mean something.
pub(crate) fn label(number: f64) -> String {
    if number == 0.0 {
        return "0".into();
    }
    if number >= 10.0 {
        return format!("{number:.0}");
    }
    let text = format!("{number:.3}");
    text.trim_end_matches('0').trim_end_matches('.').into()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
