//! The results: as a table, and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use crate::args::Options;
use crate::modes::Mode;
use crate::tally::{Outcome, Tally};
use crate::tls::{Handshakes, Sessions};
use crate::trial::{Event, Trial};

/// All stops or restarts of one server in one mode.
#[derive(Debug)]
pub(crate) struct Row {
    event: Event,
    pub(crate) server: String,
    pub(crate) mode: &'static Mode,
    pub(crate) sum: Tally,
    pub(crate) trials: usize,
    trials_with_loss: usize,
    /// Of those that ended by themselves, in order.
    times: Vec<Duration>,
    /// The others: the server was killed.
    pub(crate) failed: usize,
    /// How many ledgers were compared, and where they differ.
    ledgers: usize,
    differences: Vec<String>,
    /// Ways in which processes ended, and how often.
    statuses: BTreeMap<String, usize>,
    /// Why there are no trials, if there are none.
    pub(crate) skipped: Option<String>,
}

impl Row {
    pub(crate) fn new(event: Event, server: &str, mode: &'static Mode) -> Self {
        Self {
            event,
            server: server.into(),
            mode,
            sum: Tally::default(),
            trials: 0,
            trials_with_loss: 0,
            times: Vec::new(),
            failed: 0,
            ledgers: 0,
            differences: Vec::new(),
            statuses: BTreeMap::new(),
            skipped: None,
        }
    }

    pub(crate) fn add(&mut self, trial: Trial) {
        self.trials += 1;
        self.trials_with_loss += usize::from(trial.tally.lost() > 0);
        self.sum.merge(&trial.tally);
        match trial.time {
            Some(time) => self.times.push(time),
            None => self.failed += 1,
        }
        self.times.sort_unstable();
        if let Some(differences) = trial.ledger {
            self.ledgers += 1;
            if !differences.is_empty() {
                self.differences.push(differences.join("; "));
            }
        }
        if let Some(status) = trial.status {
            *self.statuses.entry(status).or_default() += 1;
        }
    }

    /// Nothing is to be complained of.
    pub(crate) fn is_good(&self) -> bool {
        // Who serves nobody loses nothing, but that is no merit.
        let serves = self.sum.get(Outcome::Ok) > 0 || !self.is_there();
        serves
            && self.sum.lost() == 0
            && self.sum.get(Outcome::ErrorStatus) == 0
            && self.failed == 0
            && self.differences.is_empty()
    }

    /// Whether the mode could be run.
    fn is_there(&self) -> bool {
        self.trials > 0
    }

    fn cells(&self) -> [String; COLUMNS] {
        let dash = || "-".to_owned();
        let time =
            |time: Option<&Duration>| time.map_or_else(dash, |time| time.as_millis().to_string());
        let losses: Vec<_> = self
            .sum
            .losses()
            .map(|(outcome, count)| format!("{count} {}", outcome.name()))
            .collect();
        let lost = match (self.sum.lost(), &losses[..]) {
            (lost, []) => lost.to_string(),
            (_, [only]) => only.clone(),
            (lost, several) => format!("{lost} ({})", several.join(", ")),
        };
        let ledger = match (self.ledgers, self.differences.len()) {
            (0, _) => dash(),
            (_, 0) => "ok".into(),
            (_, differ) => format!("{differ} differ"),
        };
        [
            self.server.clone(),
            self.mode.name.into(),
            self.trials.to_string(),
            self.sum.requests().to_string(),
            self.sum.get(Outcome::Ok).to_string(),
            lost,
            self.trials_with_loss.to_string(),
            self.sum.get(Outcome::Race).to_string(),
            self.sum.get(Outcome::ErrorStatus).to_string(),
            match self.event {
                Event::Stop => self.sum.refused.to_string(),
                // Those are among the lost.
                Event::Restart => dash(),
            },
            self.sum.closed_idle.to_string(),
            format!(
                "{} / {}",
                time(self.times.get(self.times.len().saturating_sub(1) / 2)),
                time(self.times.last())
            ),
            ledger,
        ]
    }

    /// What a cell has no room for.
    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let mut note =
            |text: String| notes.push(format!("{} {}: {text}", self.server, self.mode.name));
        if let Some(why) = &self.skipped {
            note(format!("skipped: {why}"));
        }
        for difference in self.differences.iter().take(3) {
            note(format!("ledger: {difference}"));
        }
        if let Some(error) = &self.sum.local_error {
            let count = self.sum.local_errors;
            note(format!(
                "{count} connections not begun, for want of means here: {error}"
            ));
        }
        notes
    }

    fn to_json(&self) -> Value {
        let mut map = self.sum.to_json();
        let times: Vec<_> = self.times.iter().map(Duration::as_millis).collect();
        let event = self.event.name();
        let failed = match self.event {
            Event::Stop => "never_ended",
            Event::Restart => "failed",
        };
        let rest = json!({
            "server": self.server,
            "mode": self.mode.name,
            "skipped": self.skipped,
            format!("{event}s"): self.trials,
            format!("{event}s_with_loss"): self.trials_with_loss,
            format!("{event}_ms"): times,
            failed: self.failed,
            "ledgers": self.ledgers,
            "ledger_differences": self.differences,
            "statuses": self.statuses,
        });
        if let Value::Object(rest) = rest {
            map.extend(rest);
        }
        map.into()
    }
}

const COLUMNS: usize = 13;

fn titles(event: Event) -> [String; COLUMNS] {
    let event = event.name();
    [
        "server".into(),
        "mode".into(),
        format!("{event}s"),
        "requests".into(),
        "ok".into(),
        "lost".into(),
        format!("{event}s with loss"),
        "race".into(),
        "5xx".into(),
        "refused".into(),
        "closed idle".into(),
        format!("{event} ms median / max"),
        "ledger".into(),
    ]
}

/// The first two columns, and the losses, are words.
fn is_text(column: usize) -> bool {
    matches!(column, 0 | 1 | 5)
}

/// What the names in the column of losses mean, of those that are in it.
fn legend(rows: &[Row]) -> Vec<String> {
    let seen =
        |outcome: &Outcome| outcome.is_lost() && rows.iter().any(|row| row.sum.get(*outcome) > 0);
    let line = |outcome: Outcome| format!("{}: {}", outcome.name(), outcome.meaning());
    Outcome::ALL.into_iter().filter(seen).map(line).collect()
}

/// The table, a legend, and notes below it. It is Markdown, too.
pub(crate) fn table(event: Event, rows: &[Row]) -> String {
    let there: Vec<_> = rows
        .iter()
        .filter(|row| row.is_there())
        .map(Row::cells)
        .collect();
    let titles = titles(event);
    let mut widths = titles.each_ref().map(String::len);
    for cells in &there {
        for (width, cell) in widths.iter_mut().zip(cells) {
            *width = (*width).max(cell.len());
        }
    }
    let mut text = String::new();
    let mut line = |cells: [&str; COLUMNS]| {
        for (column, (cell, width)) in cells.iter().zip(widths).enumerate() {
            // Writing to a String cannot fail.
            let _ = if is_text(column) {
                write!(text, "| {cell:<width$} ")
            } else {
                write!(text, "| {cell:>width$} ")
            };
        }
        text += "|\n";
    };
    line(titles.each_ref().map(String::as_str));
    let rules: Vec<_> = widths
        .iter()
        .enumerate()
        .map(|(column, &width)| {
            let end = if is_text(column) { "-" } else { ":" };
            "-".repeat(width - 1) + end
        })
        .collect();
    line(std::array::from_fn(|column| &*rules[column]));
    for cells in &there {
        line(std::array::from_fn(|column| &*cells[column]));
    }
    let mut notes = legend(rows);
    notes.extend(rows.iter().flat_map(Row::notes));
    notes.extend(statuses(rows));
    notes.extend(handshakes(rows));
    if !notes.is_empty() {
        text += "\n";
        text += &notes.join("\n");
        text += "\n";
    }
    text
}

/// How processes ended, if not with success: by server, because it hardly depends on the mode.
fn statuses(rows: &[Row]) -> Vec<String> {
    let mut counts = BTreeMap::<_, usize>::new();
    for row in rows {
        for (status, count) in &row.statuses {
            *counts.entry((&row.server, status)).or_default() += count;
        }
    }
    let note = |((server, status), count)| format!("{server}: {count} processes: {status}");
    counts.into_iter().map(note).collect()
}

/// The handshakes of TLS, by server.
fn handshakes(rows: &[Row]) -> Vec<String> {
    let mut sums = BTreeMap::<_, Handshakes>::new();
    for row in rows {
        let sum = sums.entry(&row.server).or_default();
        sum.merge(row.sum.handshakes);
    }
    let note = |(server, sum): (_, Handshakes)| {
        let abrupt = match sum.abrupt {
            0 => String::new(),
            count => format!("; {count} connections ended without close_notify"),
        };
        let (full, resumed) = (sum.full, sum.resumed);
        format!("{server}: TLS handshakes: {full} full, {resumed} resumed{abrupt}")
    };
    let any = |(_, sum): &(_, Handshakes)| sum.full + sum.resumed > 0;
    sums.into_iter().filter(any).map(note).collect()
}

/// Everything, for programs.
pub(crate) fn to_json(options: &Options, rows: &[Row]) -> Value {
    let servers: Vec<_> = options
        .servers
        .iter()
        .map(|server| json!({"name": server.name, "command": server.command}))
        .collect();
    json!({
        "seed": options.seed,
        "clients": options.clients,
        "load_ms": options.load.as_millis(),
        "tls": options.tls.is_some(),
        "tls_resumption": options.tls == Some(Sessions::Resume),
        "think_ms": options.think.as_millis(),
        "servers": servers,
        "rows": rows.iter().map(Row::to_json).collect::<Vec<_>>(),
    })
}
