//! The CPU time of requests as a chart, beside hyper's.

use crate::bars::{Bar, Chart, Group, Scale};
use crate::results::Results;
use crate::servers::{SERVERS, YARDSTICK};

const GROUPS: [(&str, &str); 4] = [
    ("ka64", "keep-alive"),
    ("pipe16", "pipelined 16"),
    ("new", "new connection"),
    ("close", "and closed"),
];

pub(crate) fn chart(results: &Results) -> String {
    let mut groups = Vec::new();
    for (figure, name) in GROUPS {
        let mut bars = Vec::new();
        for server in SERVERS.iter().map(|spec| spec.name) {
            let (Some(micros), Some(ratio)) = (
                results.median(server, figure),
                results.ratio(server, figure),
            ) else {
                continue;
            };
            bars.push(Bar {
                name: server,
                value: ratio,
                colour: match server {
                    YARDSTICK => 1,
                    ours if ours.starts_with("ours") => 0,
                    _ => 5,
                },
                label: format!("{ratio:.2}"),
                aside: format!("{micros:.1} us"),
            });
        }
        bars.sort_by(|one, other| one.value.total_cmp(&other.value));
        if !bars.is_empty() {
            groups.push(Group { name, bars });
        }
    }
    let chart = Chart {
        title: "CPU time of the server for a request",
        note: "times that of hyper; less is better",
        scale: Scale::Linear,
        groups,
    };
    chart.svg()
}
