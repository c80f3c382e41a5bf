//! The results as a chart: lost requests per stop or restart, by mode and server; races in words.

use crate::bars::{Bar, Chart, Group, Scale, label};
use crate::output::Row;
use crate::tally::Outcome;
use crate::trial::Event;

/// What is no loss, but must be known.
fn aside(raced: f64, row: &Row) -> String {
    let crossed = (raced > 0.0).then(|| format!("{} races", label(raced)));
    // Who serves nobody loses nothing.
    let failed = (row.failed > 0).then(|| format!("{} failed of {}", row.failed, row.trials));
    let all: Vec<_> = crossed.into_iter().chain(failed).collect();
    match &all[..] {
        [] => String::new(),
        all => format!("and {}", all.join(", ")),
    }
}

/// The chart. Nothing lost is a 0 without a bar.
pub(crate) fn chart(event: Event, rows: &[Row]) -> String {
    let mut servers: Vec<&str> = Vec::new();
    let mut groups: Vec<Group<'_>> = Vec::new();
    for row in rows.iter().filter(|row| row.trials > 0) {
        if !servers.contains(&&*row.server) {
            servers.push(&row.server);
        }
        let colour = servers.iter().position(|&server| server == row.server);
        let lost = row.sum.lost() as f64 / row.trials as f64;
        let raced = row.sum.get(Outcome::Race) as f64 / row.trials as f64;
        let bar = Bar {
            name: &row.server,
            value: lost,
            colour: colour.unwrap_or_default(),
            label: label(lost),
            aside: aside(raced, row),
        };
        match groups
            .last_mut()
            .filter(|group| group.name == row.mode.name)
        {
            Some(group) => group.bars.push(bar),
            None => groups.push(Group {
                name: row.mode.name,
                bars: vec![bar],
            }),
        }
    }
    let title = format!("Requests lost per {} under load", event.name());
    let chart = Chart {
        title: &title,
        note: "logarithmic scale; less is better",
        scale: Scale::Logarithmic,
        groups,
    };
    chart.svg()
}
