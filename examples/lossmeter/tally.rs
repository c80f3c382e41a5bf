//! What became of the requests, and whether the server's own books say the same.

use serde_json::{Map, Value, json};

use crate::tls::Handshakes;

/// What a request came to. `Ok`, `ErrorStatus` and `Race` are no loss; what follows them is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The answer was whole and right.
    Ok,
    /// The answer was whole, and a 5xx.
    ErrorStatus,
    /// It crossed the server's FIN, on a connection that had been used before.
    Race,
    /// Reset without a byte of an answer, on a new connection.
    ResetFresh,
    /// The same, but closed.
    ClosedFresh,
    /// Reset before anything was sent, on a new connection.
    ResetUnused,
    /// The same, but closed.
    ClosedUnused,
    /// Closed or reset without a byte of an answer, on a used connection, when the server must have had the request.
    Dropped,
    /// The answer was cut.
    Truncated,
    /// Sent together with a request that was answered (or cut), and not answered itself.
    Pipelined,
    TimedOut,
    /// The answer was no HTTP, or not what the server had answered before.
    Bad,
    /// Refused, and the server had not been asked to stop.
    RefusedEarly,
}

impl Outcome {
    /// Of a loss: what has happened, in a line.
    pub(crate) fn meaning(self) -> &'static str {
        match self {
            Self::Ok => "the answer was whole and right",
            Self::ErrorStatus => "the answer was whole, and a 5xx",
            Self::Race => "crossed the server's FIN on a used connection",
            Self::ResetFresh => "sent on a new connection, and reset without a byte of an answer",
            Self::ClosedFresh => "sent on a new connection, and closed without a byte of an answer",
            Self::ResetUnused => "a new connection, reset before anything was sent",
            Self::ClosedUnused => "a new connection, closed before anything was sent",
            Self::Dropped => {
                "received on a used connection, and closed or reset without a byte of an answer"
            }
            Self::Truncated => "the answer was cut",
            Self::Pipelined => {
                "sent together with a request that was answered, and not answered itself"
            }
            Self::TimedOut => "no whole answer in time",
            Self::Bad => "no HTTP, or another answer than the first one",
            Self::RefusedEarly => "refused, though nobody had told the server to stop",
        }
    }

    pub(crate) const ALL: [Self; 13] = [
        Self::Ok,
        Self::ErrorStatus,
        Self::Race,
        Self::ResetFresh,
        Self::ClosedFresh,
        Self::ResetUnused,
        Self::ClosedUnused,
        Self::Dropped,
        Self::Truncated,
        Self::Pipelined,
        Self::TimedOut,
        Self::Bad,
        Self::RefusedEarly,
    ];

    pub(crate) fn is_lost(self) -> bool {
        !matches!(self, Self::Ok | Self::ErrorStatus | Self::Race)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::ErrorStatus => "error_status",
            Self::Race => "race",
            Self::ResetFresh => "reset_fresh",
            Self::ClosedFresh => "closed_fresh",
            Self::ResetUnused => "reset_unused",
            Self::ClosedUnused => "closed_unused",
            Self::Dropped => "dropped",
            Self::Truncated => "truncated",
            Self::Pipelined => "pipelined",
            Self::TimedOut => "timed_out",
            Self::Bad => "bad",
            Self::RefusedEarly => "refused_early",
        }
    }
}

/// Counts of one client, of one stop, or of all stops of a server in a mode.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    outcomes: [u64; Outcome::ALL.len()],
    /// Clients that ended because no connection could be made any more.
    pub(crate) refused: u64,
    /// Used connections that the server ended, and the client saw it before it wrote.
    pub(crate) closed_idle: u64,
    /// Connections made.
    pub(crate) connections: u64,
    /// Answers that came whole, whatever they said.
    pub(crate) complete: u64,
    /// Connections on which something was written that crossed the server's FIN, or may have.
    pub(crate) crossed: u64,
    /// With `--tls`.
    pub(crate) handshakes: Handshakes,
    /// What failed on the client's side: no port, no descriptor. No request was begun.
    pub(crate) local_errors: u64,
    /// The last such error.
    pub(crate) local_error: Option<String>,
}

impl Tally {
    /// An answer that lossmeter has waited for, to see whether the server serves. It is no request of a client.
    pub(crate) fn add_probe(&mut self) {
        self.connections += 1;
        self.complete += 1;
    }

    pub(crate) fn add(&mut self, outcome: Outcome, count: u64) {
        self.outcomes[outcome as usize] += count;
    }

    pub(crate) fn get(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome as usize]
    }

    /// All that were begun.
    pub(crate) fn requests(&self) -> u64 {
        self.outcomes.iter().sum()
    }

    pub(crate) fn lost(&self) -> u64 {
        self.losses().map(|(_, count)| count).sum()
    }

    /// What was lost, by class; classes without any are left out.
    pub(crate) fn losses(&self) -> impl Iterator<Item = (Outcome, u64)> {
        let all = Outcome::ALL.into_iter();
        let lost = all.filter(|outcome| outcome.is_lost());
        lost.map(|outcome| (outcome, self.get(outcome)))
            .filter(|&(_, count)| count > 0)
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (sum, count) in self.outcomes.iter_mut().zip(other.outcomes) {
            *sum += count;
        }
        self.refused += other.refused;
        self.closed_idle += other.closed_idle;
        self.connections += other.connections;
        self.complete += other.complete;
        self.crossed += other.crossed;
        self.handshakes.merge(other.handshakes);
        self.local_errors += other.local_errors;
        if other.local_error.is_some() {
            self.local_error.clone_from(&other.local_error);
        }
    }

    pub(crate) fn to_json(&self) -> Map<String, Value> {
        let mut map = Map::new();
        map.insert("requests".into(), json!(self.requests()));
        map.insert("lost".into(), json!(self.lost()));
        for outcome in Outcome::ALL {
            map.insert(outcome.name().into(), json!(self.get(outcome)));
        }
        for (name, count) in [
            ("refused", self.refused),
            ("closed_idle", self.closed_idle),
            ("connections", self.connections),
            ("local_errors", self.local_errors),
            ("handshakes_full", self.handshakes.full),
            ("handshakes_resumed", self.handshakes.resumed),
            ("ends_without_close_notify", self.handshakes.abrupt),
        ] {
            map.insert(name.into(), json!(count));
        }
        map
    }
}

/// The fields of a ledger.
const FIELDS: [&str; 4] = ["connections", "served", "requests", "raced"];

/// A line of a server's output, if it is a ledger: a JSON object with some of the fields.
pub(crate) fn ledger(line: &str) -> Option<Map<String, Value>> {
    let ledger: Map<_, _> = serde_json::from_str(line).ok()?;
    let some = FIELDS.iter().any(|field| ledger.contains_key(*field));
    some.then_some(ledger)
}

/// Compares the ledgers of a server's processes, of which there were so many, with what the clients saw. Says where
/// they differ; `None` if there are none.
pub(crate) fn audit(
    ledgers: &[Map<String, Value>],
    processes: usize,
    clients: &Tally,
) -> Option<Vec<String>> {
    if ledgers.is_empty() {
        return None;
    }
    // A process that tells several times is right in the end.
    let Some(start) = ledgers.len().checked_sub(processes) else {
        let found = ledgers.len();
        return Some(vec![format!("{found} ledgers of {processes} processes")]);
    };
    let mut sum = Map::new();
    for ledger in &ledgers[start..] {
        for field in FIELDS {
            if let Some(count) = ledger.get(field).and_then(Value::as_u64) {
                let before = sum.get(field).and_then(Value::as_u64).unwrap_or_default();
                sum.insert(field.into(), json!(before + count));
            }
        }
    }
    Some(compare(&sum, clients))
}

/// Compares the server's report with what the clients saw, and says where they differ.
///
/// | the server's | must equal the clients' |
/// | --- | --- |
/// | `connections` | connections that were established |
/// | `served` | whole answers, whatever their status |
/// | `requests` | whole answers, and truncated ones |
/// | `raced` | connections on which a request crossed the server's FIN: `race`, and `closed_fresh` |
///
/// The connections and requests with which lossmeter waits for the server to serve are among them. Clients end no
/// request themselves, so these are equal to the last unit, or something is lost or counted wrong. A loss that the
/// server cannot know of (a reset from its listening socket) makes a difference too: in `connections`.
fn compare(report: &Map<String, Value>, clients: &Tally) -> Vec<String> {
    let pairs = [
        ("connections", clients.connections),
        ("served", clients.complete),
        (
            "requests",
            clients.complete + clients.get(Outcome::Truncated),
        ),
        ("raced", clients.crossed),
    ];
    let differs = |&(name, seen): &(&str, u64)| {
        let told = report.get(name)?.as_u64()?;
        (told != seen).then(|| format!("{name}: server {told}, clients {seen}"))
    };
    pairs.iter().filter_map(differs).collect()
}
