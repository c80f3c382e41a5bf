//! The results as Markdown tables.

use std::fmt::Write as _;

use crate::results::Results;
use crate::servers::SERVERS;

struct Table {
    title: &'static str,
    columns: &'static [Column],
}

struct Column {
    figure: &'static str,
    title: &'static str,
    decimals: usize,
    /// Beside it, how many times the yardstick's.
    ratio: bool,
}

const fn column(figure: &'static str, title: &'static str, decimals: usize) -> Column {
    Column {
        figure,
        title,
        decimals,
        ratio: false,
    }
}

const fn compared(figure: &'static str, title: &'static str, decimals: usize) -> Column {
    Column {
        ratio: true,
        ..column(figure, title, decimals)
    }
}

const TABLES: &[Table] = &[
    Table {
        title: "CPU time of the server for a request, in microseconds (times that of hyper)",
        columns: &[
            compared("ka64", "keep-alive", 2),
            compared("pipe16", "pipelined 16", 2),
            compared("new", "new connection, client closes", 1),
            compared("close", "new connection, server closes", 1),
        ],
    },
    Table {
        title: "User-space instructions and system calls of a request",
        columns: &[
            column("instructions", "instructions", 0),
            column("instructions_pipelined", "pipelined 16", 0),
            column("syscalls", "system calls", 2),
            column("syscalls_pipelined", "pipelined 16", 2),
        ],
    },
    Table {
        title: "Two I/O threads beside one, pipelined 16",
        columns: &[
            column("threads_1", "CPU us a request, one", 2),
            column("threads_2", "two", 2),
            column("threads_1_per_s", "requests a second, one", 0),
            column("threads_2_per_s", "two", 0),
        ],
    },
    Table {
        title: "Latency at 2,000 requests a second, in microseconds, and of the other requests when 1 % of the handlers \
                take 100 ms",
        columns: &[
            column("blocking_p50_without", "median", 0),
            column("blocking_p50_with", "some block", 0),
            column("blocking_p99_without", "99 % are below", 0),
            column("blocking_p99_with", "some block", 0),
        ],
    },
    Table {
        title: "Started, and idle",
        columns: &[
            column("start_ms", "to the first answer, ms", 1),
            column("idle_resident_kib", "resident KiB", 0),
            column("idle_private_kib", "private KiB", 0),
            column("bytes_per_connection", "bytes a connection", 0),
            column("bytes_per_connection_slowly", "come slowly", 0),
            column("idle_wakes_0", "wakes a second", 1),
            column("idle_wakes_100", "with 100 connections", 1),
        ],
    },
    Table {
        title: "With TLS: CPU time of the server for a request, and for a new connection and its request, in \
                microseconds (times that of hyper), and memory",
        columns: &[
            compared("tls_ka64", "keep-alive", 2),
            column("tls_ka64_per_s", "a second", 0),
            compared("tls_handshakes", "full handshake", 1),
            column("tls_handshakes_per_s", "a second", 0),
            compared("tls_resumed", "resumed", 1),
            column("tls_resumed_per_s", "a second", 0),
            column("tls_bytes_per_connection", "bytes a connection", 0),
        ],
    },
    Table {
        title: "With TLS, large bodies on one connection: CPU time of the server for 1 GiB, in seconds (times that of \
                hyper)",
        columns: &[
            compared("tls_down", "from the server", 3),
            column("tls_down_mb_per_s", "MB a second", 0),
            compared("tls_up", "to the server", 3),
            column("tls_up_mb_per_s", "MB a second", 0),
        ],
    },
];

/// All tables that have something in them.
pub(crate) fn tables(results: &Results) -> String {
    let mut text = String::new();
    for table in TABLES {
        let columns: Vec<_> = table
            .columns
            .iter()
            .filter(|column| results.has(column.figure))
            .collect();
        if columns.is_empty() {
            continue;
        }
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}\n", table.title);
        let mut rows = vec![vec!["server".to_owned()]];
        rows[0].extend(columns.iter().map(|column| column.title.to_owned()));
        for server in SERVERS {
            let cells: Vec<_> = columns
                .iter()
                .map(|column| cell(results, server.name, column))
                .collect();
            if cells.iter().any(|cell| cell != "-") {
                rows.push([vec![server.name.to_owned()], cells].concat());
            }
        }
        text += &aligned(&rows);
        text += "\n";
    }
    text
}

fn cell(results: &Results, server: &'static str, column: &Column) -> String {
    let Some(value) = results.median(server, column.figure) else {
        return "-".into();
    };
    let text = number(value, column.decimals);
    match results.ratio(server, column.figure) {
        Some(ratio) if column.ratio => format!("{text} ({ratio:.2})"),
        _ => text,
    }
}

/// With commas between thousands.
fn number(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    let whole = text.find('.').unwrap_or(text.len());
    let mut grouped = String::new();
    for (place, digit) in text.chars().enumerate() {
        if place > 0
            && place < whole
            && (whole - place).is_multiple_of(3)
            && !grouped.ends_with('-')
        {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// The first row is the titles; the first column is words.
fn aligned(rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].len())
            .max()
            .unwrap_or(0)
            .max(3)
    };
    let widths: Vec<_> = (0..rows[0].len()).map(width).collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            let _ = if column == 0 {
                write!(text, "| {cell:<width$} ")
            } else {
                write!(text, "| {cell:>width$} ")
            };
        }
        text += "|\n";
        if number == 0 {
            for (column, width) in widths.iter().enumerate() {
                let end = if column == 0 { "-" } else { ":" };
                let _ = write!(text, "| {}{end} ", "-".repeat(width - 1));
            }
            text += "|\n";
        }
    }
    text
}
