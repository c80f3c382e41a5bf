//! The servers that are compared.

use std::env;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use crate::process::{Server, free_addr};
use crate::tls::{CERTIFICATE, KEY, Sessions, Tls};

/// A server, and what can be done with it.
#[derive(Debug)]
pub(crate) struct Spec {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// Words, with placeholders: {nginx.conf} is a copy of that file with the address in it.
    command: &'static str,
    tls: Option<Secure>,
    /// Whether valgrind can run it: not so Go.
    pub(crate) in_valgrind: bool,
    /// Whether it takes many connections: not so with a thread for each.
    pub(crate) takes_many: bool,
    /// Whether it has the path /sleep/MS.
    pub(crate) sleeps: bool,
}

/// A server with TLS.
#[derive(Debug)]
struct Secure {
    command: &'static str,
    bodies: Bodies,
}

/// Which large bodies a server has, on threads that stay: the CPU time of those that have ended is not known.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
enum Bodies {
    None,
    /// It answers /bytes/N.
    Sent,
    /// It also reads what is posted to /upload.
    SentAndRead,
}

impl Spec {
    const fn new(name: &'static str, about: &'static str, command: &'static str) -> Self {
        Self {
            name,
            about,
            command,
            tls: None,
            in_valgrind: true,
            takes_many: true,
            sleeps: false,
        }
    }

    const fn with_sleep(mut self) -> Self {
        self.sleeps = true;
        self
    }

    const fn with_tls(mut self, bodies: Bodies, command: &'static str) -> Self {
        self.tls = Some(Secure { command, bodies });
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
    .with_tls(
        Bodies::None,
        "build/hello -addr {addr} -threads {threads} -dispatch inline -tls-cert {cert} -tls-key {key}",
    )
    .with_sleep(),
    Spec::new(
        "ours-pool",
        "httpdown from C, handlers on a pool of threads",
        "build/hello -addr {addr} -threads {threads} -dispatch pool",
    )
    .with_tls(
        Bodies::SentAndRead,
        "build/hello -addr {addr} -threads {threads} -dispatch pool -tls-cert {cert} -tls-key {key}",
    )
    .with_sleep(),
    Spec::new(
        "ours-queue",
        "httpdown from C, a thread of the program's takes requests",
        "build/hello -addr {addr} -threads {threads} -dispatch queue",
    )
    .with_tls(
        Bodies::None,
        "build/hello -addr {addr} -threads {threads} -dispatch queue -tls-cert {cert} -tls-key {key}",
    )
    .with_sleep(),
    Spec::new(
        "ours-rust",
        "httpdown from Rust, a hyper service",
        "build/rust/hello httpdown {addr} {threads}",
    )
    .with_tls(Bodies::SentAndRead, "build/rust/hello httpdown-tls {addr} {threads} {cert} {key}"),
    Spec::new(
        "hyper",
        "the same service with hyper alone (TLS: rustls by tokio-rustls)",
        "build/rust/hello hyper {addr}",
    )
    .with_tls(Bodies::SentAndRead, "build/rust/hello hyper-tls {addr} {cert} {key}"),
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
        "nginx -p build/bench -e stderr -c {nginx.conf}",
    )
    .with_tls(Bodies::SentAndRead, "nginx -p build/bench -e stderr -c {nginx-tls.conf}"),
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
    .with_tls(Bodies::SentAndRead, "build/bench/go {addr} {threads} {cert} {key}")
    .with_sleep(),
];

impl Spec {
    /// Why it cannot be measured here, if it cannot.
    pub(crate) fn lack(&self) -> Option<String> {
        let program = self.command.split(' ').next().unwrap_or_default();
        (!is_there(program)).then(|| format!("{}: there is no {program}", self.name))
    }

    pub(crate) fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    pub(crate) fn sends_bodies(&self) -> bool {
        self.has_bodies(Bodies::Sent)
    }

    pub(crate) fn reads_bodies(&self) -> bool {
        self.has_bodies(Bodies::SentAndRead)
    }

    fn has_bodies(&self, least: Bodies) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.bodies >= least)
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
        self.launch(self.command, tool, threads, None)
    }

    pub(crate) fn start_tls(&self) -> io::Result<Server> {
        let secure = self.tls.as_ref();
        let secure = secure.ok_or_else(|| io::Error::other(format!("{} has no TLS", self.name)))?;
        self.launch(secure.command, &[], 1, Some(&Tls::new(Sessions::Forget)?))
    }

    fn launch(
        &self,
        command: &str,
        tool: &[&str],
        threads: usize,
        tls: Option<&Tls>,
    ) -> io::Result<Server> {
        let addr = free_addr()?;
        let mut words = Vec::new();
        words.extend(tool.iter().map(|&word| word.to_owned()));
        for word in command.split(' ') {
            words.push(fill(word, addr, threads)?);
        }
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        let path = env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/sbin"));
        Server::start(command, addr, tls)
            .map_err(|error| io::Error::other(format!("{}: {error}", self.name)))
    }
}

/// Whether there is such a file, or such a program.
pub(crate) fn is_there(name: &str) -> bool {
    Path::new(name).exists() || is_installed(name)
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
        "{cert}" => CERTIFICATE.to_owned(),
        "{key}" => KEY.to_owned(),
        "{nginx.conf}" | "{nginx-tls.conf}" => {
            let name = word.trim_matches(['{', '}']);
            let template = fs::read_to_string(Path::new("examples/bench/peers").join(name))?;
            let path = env::current_dir()?.join("build/bench").join(name);
            fs::write(&path, template.replace("{addr}", &addr.to_string()))?;
            path.to_string_lossy().into_owned()
        }
        word => word.to_owned(),
    })
}
