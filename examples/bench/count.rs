//! What can be counted instead of timed: instructions and system calls. Each figure is the difference of two runs that
//! differ in the number of requests, so that starting and ending are not in it.

use std::fs;
use std::path::PathBuf;

use crate::Result;
use crate::client::{Clients, Load};
use crate::servers::Spec;

/// How often it is tried: at times, when a signal comes, Callgrind dies of an assertion of its own
/// (`vgCallgrind_post_signal`).
const TRIES: u32 = 3;

/// A program that runs a server, and counts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Tool {
    /// Instructions in user space.
    Callgrind,
    /// System calls.
    Strace,
}

impl Tool {
    pub(crate) const fn program(self) -> &'static str {
        match self {
            Self::Callgrind => "valgrind",
            Self::Strace => "strace",
        }
    }

    /// Numbers of requests. The server is some way into its life with the fewer already, and both are whole writes.
    fn requests(self) -> (usize, usize) {
        match self {
            Self::Callgrind => (1600, 6400),
            Self::Strace => (320, 1600),
        }
    }

    /// How many a request takes.
    pub(crate) fn per_request(self, spec: &Spec, load: Load) -> Result<f64> {
        let (few, many) = self.requests();
        let base = self.count(spec, load, few)?;
        let more = self.count(spec, load, many)?;
        Ok((more as f64 - base as f64) / (many - few) as f64)
    }

    /// How many the server takes from its start to its end.
    fn count(self, spec: &Spec, load: Load, requests: usize) -> Result<u64> {
        for _ in 0..TRIES {
            if let Some(total) = self.try_count(spec, load, requests)? {
                return Ok(total);
            }
        }
        Err(format!("{} has not counted {}", self.program(), spec.name).into())
    }

    fn try_count(self, spec: &Spec, load: Load, requests: usize) -> Result<Option<u64>> {
        let out = Scratch(PathBuf::from(format!(
            "build/bench-{}-{}",
            std::process::id(),
            self.program()
        )));
        let path = out.0.to_string_lossy();
        let file = format!("--callgrind-out-file={path}");
        let tool: &[&str] = match self {
            Self::Callgrind => &["valgrind", "--quiet", "--tool=callgrind", &file],
            // With an output file it would keep signals to itself.
            Self::Strace => &[
                "strace",
                "--follow-forks",
                "--interruptible=waiting",
                "--summary-only",
                "--output",
                &path,
            ],
        };
        let server = spec.start_with(tool, 1)?;
        Clients::new(server.addr, load)?.ask(requests)?;
        server.stop()?;
        let text = fs::read_to_string(&out.0)?;
        Ok(self.total(&text))
    }

    fn total(self, text: &str) -> Option<u64> {
        match self {
            Self::Callgrind => text
                .lines()
                .find_map(|line| line.strip_prefix("totals: "))?
                .parse()
                .ok(),
            // "100.00    0.012345           5      2345        12 total"
            Self::Strace => {
                let line = text.lines().find(|line| line.ends_with(" total"))?;
                line.split_ascii_whitespace().nth(3)?.parse().ok()
            }
        }
    }
}

/// A file that goes when it has been read.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
