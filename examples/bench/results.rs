//! What was measured.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::servers::YARDSTICK;

/// The values of each figure of each server, by round.
#[derive(Debug, Default)]
pub(crate) struct Results {
    values: BTreeMap<(&'static str, &'static str), BTreeMap<usize, f64>>,
}

impl Results {
    pub(crate) fn add(
        &mut self,
        server: &'static str,
        round: usize,
        (name, value): (&'static str, f64),
    ) {
        self.values
            .entry((server, name))
            .or_default()
            .insert(round, value);
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.values.keys().any(|(_, figure)| *figure == name)
    }

    /// The median of all rounds.
    pub(crate) fn median(&self, server: &'static str, name: &'static str) -> Option<f64> {
        median(self.values.get(&(server, name))?.values().copied())
    }

    /// How many times the yardstick's: the median of the rounds, in each of which both stood side by side.
    pub(crate) fn ratio(&self, server: &'static str, name: &'static str) -> Option<f64> {
        let (ours, theirs) = (
            self.values.get(&(server, name))?,
            self.values.get(&(YARDSTICK, name))?,
        );
        let ratio = |(round, value): (&usize, &f64)| Some(value / theirs.get(round)?);
        median(ours.iter().filter_map(ratio))
    }

    pub(crate) fn to_json(&self) -> Value {
        let mut servers = BTreeMap::<_, BTreeMap<_, _>>::new();
        for (&(server, name), values) in &self.values {
            let figure = json!({
                "median": self.median(server, name),
                "ratio": self.ratio(server, name),
                "rounds": values.values().collect::<Vec<_>>(),
            });
            servers.entry(server).or_default().insert(name, figure);
        }
        json!(servers)
    }
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.len().saturating_sub(1) / 2, values.len() / 2);
    Some(f64::midpoint(*values.get(low)?, *values.get(high)?))
}
