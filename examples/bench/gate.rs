//! The gate: user instructions of a request must not grow unnoticed.
//!
//! Instructions are steady where times are not: two runs differ by less than 0.1 %. But another compiler, another libc and
//! another processor (whose memcpy is chosen at run time) make other numbers, of us and of hyper alike. So what is
//! compared is how many times hyper's they are, hyper being measured in the same run: where compiler and libc are those
//! of the committed figures, hyper's number is the same again, and the comparison is exact. Where they are not, there is
//! room for what the ratio does not absorb.
//!
//! Only what runs on one thread is here: where threads hand requests to each other, the number depends on who sleeps.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::Result;
use crate::client::Load;
use crate::count::Tool;
use crate::servers::{SERVERS, YARDSTICK, is_installed};

const GATED: [&str; 2] = ["ours-inline", "ours-rust"];

const LOADS: [(&str, Load); 2] = [
    ("sequential", Load::SEQUENTIAL),
    ("pipelined", Load::PIPELINED),
];

/// How much the ratio may grow.
const ROOM: f64 = 0.03;
/// With another compiler or libc.
const ROOM_ELSEWHERE: f64 = 0.10;

/// Whether no figure has grown beyond those in the file; or, to UPDATE it, writes it anew.
pub(crate) fn run(path: &Path, update: bool) -> Result<bool> {
    if !is_installed(Tool::Callgrind.program()) {
        return Err("there is no valgrind".into());
    }
    let toolchain = toolchain();
    let mut now = json!({});
    for spec in SERVERS
        .iter()
        .filter(|spec| spec.name == YARDSTICK || GATED.contains(&spec.name))
    {
        for (load_name, load) in LOADS {
            let count = Tool::Callgrind.per_request(spec, load)?;
            now[spec.name][load_name] = format!("{count:.0}").parse::<u64>()?.into();
        }
    }
    if update {
        let text = format!(
            "{:#}\n",
            json!({"toolchain": toolchain, "instructions": now})
        );
        fs::write(path, text)?;
        println!("{} is written", path.display());
        return Ok(true);
    }
    let name = path.display();
    let text = fs::read_to_string(path).map_err(|error| format!("{name}: {error}"))?;
    let file: Value = serde_json::from_str(&text).map_err(|error| format!("{name}: {error}"))?;
    let room = if file["toolchain"] == toolchain {
        ROOM
    } else {
        println!(
            "{name} is from {}, this is {toolchain}: only coarse growth is seen",
            file["toolchain"]
        );
        ROOM_ELSEWHERE
    };
    let mut good = true;
    for server in GATED {
        for (load, _) in LOADS {
            let then = ratio(&file["instructions"], server, load)
                .ok_or_else(|| format!("{name} has no figure for {server}, {load}"))?;
            let now = ratio(&now, server, load).ok_or("nothing was counted")?;
            let growth = now.1 / then.1 - 1.0;
            let verdict = if growth > room {
                good = false;
                "TOO MUCH"
            } else if growth < -ROOM {
                "less: to be kept by --update"
            } else {
                "ok"
            };
            println!(
                "{server:<12} {load:<10} {:>6.0} instructions, {:.3} of hyper's (were {:.0}, {:.3}): {:+.1} %  {verdict}",
                now.0,
                now.1,
                then.0,
                then.1,
                growth * 100.0
            );
        }
    }
    Ok(good)
}

/// The number, and how many times the yardstick's it is.
fn ratio(figures: &Value, server: &str, load: &str) -> Option<(f64, f64)> {
    let figure = |server: &str| {
        figures[server][load]
            .as_f64()
            .filter(|&figure| figure > 0.0)
    };
    let count = figure(server)?;
    Some((count, count / figure(YARDSTICK)?))
}

/// Compiler and libc, as far as they can be known.
fn toolchain() -> String {
    let said = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        let words: Vec<_> = text.split_whitespace().take(2).collect();
        (!words.is_empty()).then(|| words.join(" "))
    };
    let unknown = || "unknown".to_owned();
    format!(
        "{}, {}",
        said("rustc", &["--version"]).unwrap_or_else(unknown),
        said("getconf", &["GNU_LIBC_VERSION"]).unwrap_or_else(unknown)
    )
}
