//! The results as a chart: lost requests per stop, by mode and server; races in words.

use std::fmt::Write as _;

use crate::output::Row;
use crate::tally::Outcome;

/// For light and for dark backgrounds alike; told apart also by who cannot tell red from green.
const COLOURS: [&str; 7] = [
    "#2a9d8f", "#e76f51", "#e9a227", "#4c78d0", "#a05fc0", "#8a8f98", "#c0566f",
];

const STYLE: &str = "\
text { font: 12px system-ui, sans-serif; fill: #222 }
.title { font-size: 15px; font-weight: 600 }
.mode { font-weight: 600 }
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

/// The chart. Its scale is logarithmic; nothing lost is a 0 without a bar.
pub(crate) fn chart(rows: &[Row]) -> String {
    let rows: Vec<_> = rows.iter().filter(|row| row.stops > 0).collect();
    let rates: Vec<_> = rows
        .iter()
        .map(|row| row.sum.lost() as f64 / row.stops as f64)
        .collect();
    let some = rates.iter().copied().filter(|&rate| rate > 0.0);
    // The scale: from below the smallest to above the largest, in powers of ten.
    let low = some.clone().fold(1.0, f64::min).log10().floor() - 1.0;
    let high = some.fold(10.0, f64::max).log10().ceil();
    let x = |rate: f64| LEFT + (rate.log10() - low) / (high - low) * (WIDTH - LEFT - RIGHT);

    let mut servers: Vec<&str> = Vec::new();
    for row in &rows {
        if !servers.contains(&&*row.server) {
            servers.push(&row.server);
        }
    }
    let (mut bars, mut y, mut mode) = (String::new(), TOP, "");
    for (row, &rate) in rows.iter().zip(&rates) {
        if row.mode.name != mode {
            y += if mode.is_empty() { 0.0 } else { GAP };
            mode = row.mode.name;
            let at = y + BAR - 3.0;
            let _ = writeln!(
                bars,
                r#"<text class="mode" x="12" y="{at:.0}">{mode}</text>"#
            );
        }
        let place = servers
            .iter()
            .position(|&server| server == row.server)
            .unwrap_or_default();
        let colour = COLOURS[place % COLOURS.len()];
        let text_y = y + BAR - 3.0;
        let name = escape(&row.server);
        let end = if rate > 0.0 { x(rate) } else { LEFT };
        let _ = writeln!(
            bars,
            r#"<text class="quiet" x="{:.0}" y="{text_y:.0}" text-anchor="end">{name}</text>"#,
            LEFT - 8.0
        );
        if rate > 0.0 {
            let width = end - LEFT;
            let _ = writeln!(
                bars,
                r#"<rect x="{LEFT}" y="{y:.0}" width="{width:.1}" height="{BAR}" rx="2" fill="{colour}"/>"#
            );
        }
        let raced = row.sum.get(Outcome::Race) as f64 / row.stops as f64;
        let raced = if raced > 0.0 {
            format!(
                r#"<tspan class="quiet"> and {} races</tspan>"#,
                label(raced)
            )
        } else {
            String::new()
        };
        let _ = writeln!(
            bars,
            r#"<text x="{:.1}" y="{text_y:.0}">{}{raced}</text>"#,
            end + 6.0,
            label(rate)
        );
        y += STEP;
    }
    let mut grid = String::new();
    let mut power = low + 1.0;
    while power <= high {
        let at = x(10_f64.powf(power));
        let _ = writeln!(
            grid,
            r#"<line class="grid" x1="{at:.1}" x2="{at:.1}" y1="{:.0}" y2="{y:.0}"/><text class="quiet" x="{at:.1}" y="{:.0}" text-anchor="middle">{}</text>"#,
            TOP - 6.0,
            TOP - 10.0,
            label(10_f64.powf(power))
        );
        power += 1.0;
    }
    let height = y + 12.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" width=\"{WIDTH}\" \
         height=\"{height:.0}\" role=\"img\" aria-label=\"Requests lost per stop\">\n<style>\n{STYLE}\n</style>\n\
         <text class=\"title\" x=\"12\" y=\"24\">Requests lost per stop under load</text>\n\
         <text class=\"quiet\" x=\"{:.0}\" y=\"24\" text-anchor=\"end\">logarithmic scale; less is better</text>\n\
         {grid}{bars}</svg>\n",
        WIDTH - 12.0
    )
}

/// A number with as many digits as mean something.
fn label(rate: f64) -> String {
    if rate == 0.0 {
        return "0".into();
    }
    if rate >= 10.0 {
        return format!("{rate:.0}");
    }
    let text = format!("{rate:.3}");
    text.trim_end_matches('0').trim_end_matches('.').into()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
