//! The servers that are compared.

use std::env;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use crate::process::{Server, free_addr};

/// A server, and what can be done with it.
#[derive(Debug)]
pub(crate) struct Spec {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// Words, with placeholders: {conf} is a copy of nginx.conf with the address in it.
    command: &'static str,
    /// Whether valgrind can run it: not so Go.
    pub(crate) in_valgrind: bool,
    /// Whether it takes many connections: not so with a thread for each.
    pub(crate) takes_many: bool,
    /// Whether it has the path /sleep/MS.
    pub(crate) sleeps: bool,
}

impl Spec {
    const fn new(name: &'static str, about: &'static str, command: &'static str) -> Self {
        Self {
            name,
            about,
            command,
            in_valgrind: true,
            takes_many: true,
            sleeps: false,
        }
    }

    const fn with_sleep(mut self) -> Self {
        self.sleeps = true;
        self
    }
}

/// What others are compared with.
pub(crate) const YARDSTICK: &str = "hyper";

/// All of them, with one I/O thread each unless it is said.
pub(crate) static SERVERS: &[Spec] = &[
    Spec::new(
        "ours-inline",
        "httpdown from C, handlers in place",
        "build/hello -addr {addr} -threads {threads} -dispatch inline",
    )
    .with_sleep(),
    Spec::new(
        "ours-pool",
        "httpdown from C, handlers on a pool of threads",
        "build/hello -addr {addr} -threads {threads} -dispatch pool",
    )
    .with_sleep(),
    Spec::new(
        "ours-queue",
        "httpdown from C, a thread of the program's takes requests",
        "build/hello -addr {addr} -threads {threads} -dispatch queue",
    )
    .with_sleep(),
    Spec::new(
        "ours-rust",
        "httpdown from Rust, a hyper service",
        "build/rust/hello httpdown {addr} {threads}",
    ),
    Spec::new(
        "hyper",
        "the same service with hyper alone",
        "build/rust/hello hyper {addr}",
    ),
    Spec::new(
        "hyper-flush",
        "the same with hyper's pipeline_flush",
        "build/rust/hello hyper-flush {addr}",
    ),
    Spec::new(
        "hyper-beside",
        "the same with hyper, in a process that has another thread, which sleeps",
        "build/rust/hello hyper-beside {addr}",
    ),
    Spec::new(
        "epoll",
        "a loop around epoll and a fixed answer: the limit",
        "build/bench/epoll {port}",
    ),
    Spec::new(
        "nginx",
        "nginx, one process",
        "nginx -p build/bench -e stderr -c {conf}",
    ),
    Spec::new(
        "libmicrohttpd",
        "libmicrohttpd, one thread with epoll",
        "build/bench/libmicrohttpd {port}",
    ),
    Spec::new(
        "libh2o",
        "libh2o, its own event loop",
        "build/bench/libh2o {port}",
    ),
    Spec::new(
        "libevent",
        "libevent's evhttp",
        "build/bench/libevent {port}",
    ),
    Spec {
        takes_many: false,
        ..Spec::new(
            "civetweb",
            "civetweb, a thread for each connection",
            "build/bench/civetweb {port}",
        )
    },
    Spec::new(
        "beast",
        "Boost.Beast, asynchronous",
        "build/bench/beast {port}",
    ),
    Spec {
        in_valgrind: false,
        ..Spec::new(
            "go",
            "Go's net/http, GOMAXPROCS=1",
            "build/bench/go {addr} {threads}",
        )
    }
    .with_sleep(),
];

impl Spec {
    /// Why it cannot be measured here, if it cannot.
    pub(crate) fn lack(&self) -> Option<String> {
        let program = self.command.split(' ').next().unwrap_or_default();
        let there = Path::new(program).exists() || is_installed(program);
        (!there).then(|| format!("{}: there is no {program}", self.name))
    }

    /// Whether it can have more than one I/O thread.
    pub(crate) fn has_threads(&self) -> bool {
        self.command.contains("{threads}")
    }

    pub(crate) fn start(&self) -> io::Result<Server> {
        self.start_with(&[], 1)
    }

    /// Starts it under a TOOL (words in front of the command), with so many I/O threads.
    pub(crate) fn start_with(&self, tool: &[&str], threads: usize) -> io::Result<Server> {
        let addr = free_addr()?;
        let mut words = Vec::new();
        words.extend(tool.iter().map(|&word| word.to_owned()));
        for word in self.command.split(' ') {
            words.push(fill(word, addr, threads)?);
        }
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        let path = env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/sbin"));
        Server::start(command, addr)
            .map_err(|error| io::Error::other(format!("{}: {error}", self.name)))
    }
}

/// Whether there is such a program. Debian has nginx where only root looks.
pub(crate) fn is_installed(program: &str) -> bool {
    env::var_os("PATH")
        .iter()
        .flat_map(env::split_paths)
        .chain(["/usr/sbin".into()])
        .any(|dir| dir.join(program).exists())
}

/// A word of a command line, with what is in the place of its placeholder.
fn fill(word: &str, addr: SocketAddr, threads: usize) -> io::Result<String> {
    Ok(match word {
        "{addr}" => addr.to_string(),
        "{port}" => addr.port().to_string(),
        "{threads}" => threads.to_string(),
        "{conf}" => {
            let template = fs::read_to_string("examples/bench/peers/nginx.conf")?;
            let path = env::current_dir()?.join("build/bench/nginx.conf");
            fs::write(&path, template.replace("{addr}", &addr.to_string()))?;
            path.to_string_lossy().into_owned()
        }
        word => word.to_owned(),
    })
}
