//! `bench` measures what a request costs: in httpdown, in the hyper below it, and in other servers.
//!
//! Figures of time are noisy, and depend on the machine; so servers take turns, and are compared with hyper in the same
//! rounds. Instructions and system calls are counted, and steady. Some servers are measured with TLS, too: what they
//! agree on is the same for all. `bench --help` lists what there is to measure.
//!
//! ```text
//! cargo run --release --example bench -- --only ka64 --servers ours-inline,hyper
//! ```

#[path = "../lossmeter/anybody.rs"]
mod anybody;
mod args;
#[path = "../lossmeter/bars.rs"]
mod bars;
mod chart;
mod client;
mod count;
mod gate;
mod link;
mod measure;
mod paced;
mod process;
mod report;
mod results;
mod servers;
mod tls;
mod transfer;

use std::error::Error;
use std::fs;
use std::process::ExitCode;
use std::thread;

use args::{Options, Task};
use measure::{Bench, Figure, Measurement, Turns};
use process::Cpus;
use results::Results;
use servers::Spec;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::from(2)
        }
    }
}

/// Whether all went well.
fn run() -> Result<bool> {
    process::end_all_when_interrupted()?;
    match args::parse(std::env::args_os().skip(1)).map_err(|error| error.to_string())? {
        Task::Help => {
            print!("{}", args::help());
            Ok(true)
        }
        Task::Gate { path, update } => gate::run(&path, update),
        Task::Measure(options) => measure(&options),
    }
}

fn measure(options: &Options) -> Result<bool> {
    measure::raise_limits()?;
    let bench = Bench {
        cpus: Cpus::new(options.cpu)?,
        scale: options.scale,
    };
    let (there, lacks): (Vec<_>, Vec<_>) = options
        .servers
        .iter()
        .copied()
        .partition(|spec| spec.lack().is_none());
    for lack in lacks.into_iter().filter_map(Spec::lack) {
        eprintln!("skipped: {lack}");
    }
    let (mut results, mut good) = (Results::default(), true);
    for measurement in &options.measurements {
        if let Some(missing) = measurement.needs.filter(|need| !servers::is_there(need)) {
            eprintln!("skipped: {}: there is no {missing}", measurement.name);
            continue;
        }
        let specs: Vec<_> = there
            .iter()
            .copied()
            .filter(|spec| (measurement.applies)(spec))
            .collect();
        good &= take_turns(&bench, measurement, &specs, options.rounds, &mut results);
    }
    print!("{}", report::tables(&results));
    if let Some(path) = &options.json {
        fs::write(path, format!("{:#}\n", results.to_json()))?;
    }
    if let Some(path) = &options.svg {
        fs::write(path, chart::chart(&results))?;
    }
    Ok(good)
}

/// Measures one thing of all servers. Whether none of them failed; what fails is named, and the others go on.
fn take_turns(
    bench: &Bench,
    measurement: &Measurement,
    specs: &[&'static Spec],
    rounds: usize,
    results: &mut Results,
) -> bool {
    let mut good = true;
    let mut enter = |spec: &'static Spec, round, figures: Result<Vec<Figure>>| match figures {
        Ok(figures) => {
            for figure in figures {
                results.add(spec.name, round, figure);
            }
        }
        Err(error) => {
            eprintln!("bench: {} of {}: {error}", measurement.name, spec.name);
            good = false;
        }
    };
    eprintln!("{}: {}", measurement.name, measurement.about);
    let run = |spec: &&'static Spec| (*spec, (measurement.run)(bench, spec));
    if measurement.turns == Turns::Together {
        let all: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = specs
                .iter()
                .map(|spec| scope.spawn(move || run(spec)))
                .collect();
            threads
                .into_iter()
                .filter_map(|thread| thread.join().ok())
                .collect()
        });
        for (spec, figures) in all {
            enter(spec, 0, figures);
        }
        return good;
    }
    let rounds = if measurement.turns == Turns::Once {
        1
    } else {
        rounds
    };
    for round in 0..rounds {
        for (spec, figures) in specs.iter().map(run) {
            enter(spec, round, figures);
        }
    }
    good
}
