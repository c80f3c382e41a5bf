//! A restart: what becomes of clients, of sockets and of processes. Each test starts this program once more, as a
//! service that can be told to restart itself, and talks with it and its successors by HTTP.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a helper that fails fails its test"
)]

use std::env;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use httpdown::{Dispatch, Error, Exchange, Listener, Query, Restart, Server, restart_info};

/// The addresses on which the service listens, in lines. This is what makes the program a service.
const ADDRS: &str = "HTTPDOWN_TEST_ADDRS";
/// What a service does that was started by a restart, if it is not to be as good as its predecessor.
const FAULT: &str = "HTTPDOWN_TEST_FAULT";

/// The target of the canary.
const CANARY: &str = "HTTPDOWN_TEST_CANARY";

/// All servers of a process are restarted together, and none while one of them stops: so tests that have one in this
/// process take turns.
static ONE_SERVER: Mutex<()> = Mutex::new(());

/// The service. It ends when its servers have stopped.
#[test]
fn service() {
    let Ok(addrs) = env::var(ADDRS) else { return };
    let is_successor = env::var_os("HTTPDOWN_RESTART").is_some();
    let fault = env::var(FAULT).ok().filter(|_| is_successor);
    match fault.as_deref() {
        Some("panic") => panic!("something is missing"),
        Some("hang") => loop {
            std::thread::park();
        },
        _ => {}
    }
    let mut servers = Vec::new();
    for (at, addr) in addrs.lines().enumerate() {
        if at == 0 || fault.as_deref() != Some("forget") {
            servers.push(serve(Listener::bind(addr).unwrap()));
        }
    }
    if !is_successor {
        for server in &servers {
            println!("serving {}", server.local_addrs()[0]);
        }
    }
    for server in servers {
        let report = server.wait_blocking(None).unwrap();
        assert_eq!(report.successor, restart_info().successor);
        server.close();
    }
}

fn serve(listener: Listener) -> Server {
    let log = Arc::new(Mutex::new(Vec::<String>::new()));
    let told = Arc::clone(&log);
    let mut builder = Server::builder();
    if let Ok(target) = env::var(CANARY) {
        builder = builder.canary(target);
    }
    builder
        .idle_grace(Duration::from_millis(300))
        .on_log(move |level, text| {
            let line = format!("{level:?}: {text}");
            eprintln!("{} {line}", std::process::id());
            told.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(line);
        })
        .handle(listener, Dispatch::default(), move |exchange: Exchange| {
            answer(exchange, &log);
        })
        .unwrap()
}

fn answer(exchange: Exchange, log: &Mutex<Vec<String>>) {
    let server = exchange.server();
    let target = exchange.uri().clone();
    let query = Query::new(target.query().unwrap_or(""));
    let text = match (exchange.method().clone(), target.path()) {
        (Method::GET, "/") => std::process::id().to_string(),
        (_, "/well") => {
            let conn = exchange.conn();
            let is_ours = conn.peer == conn.local && conn.credentials.is_some();
            assert!(is_ours, "{conn:?}");
            "well".into()
        }
        // Never answered.
        (_, "/kept") => {
            static KEPT: Mutex<Vec<Exchange>> = Mutex::new(Vec::new());
            KEPT.lock().unwrap().push(exchange);
            return;
        }
        (_, "/restart") => {
            let mut restart = Restart::default().probation(Duration::from_millis(200));
            let mut env: Vec<_> = env::vars().collect();
            env.retain(|(name, _)| name != FAULT);
            if let Some(fault) = query.get("fault") {
                env.push((FAULT.into(), fault.to_string()));
            }
            if let Some(target) = query.get("canary") {
                env.push((CANARY.into(), target.to_string()));
            }
            restart = restart.env(env);
            if let Some(ready) = query.get("ready") {
                restart = restart.ready_timeout(Duration::from_millis(ready.parse().unwrap()));
            }
            match server.restart_blocking(restart) {
                Ok(restarted) => format!("ok {}", restarted.pid),
                Err(error) => format!("failed {error}"),
            }
        }
        (_, "/info") => format!("{:?}", restart_info()),
        (_, "/log") => log.lock().unwrap().join("\n"),
        (_, "/stop") => {
            server.stop_begin();
            "stops".into()
        }
        _ => {
            let not_found = Response::builder().status(StatusCode::NOT_FOUND);
            let _ = exchange.reply(not_found.body(Bytes::new()).unwrap());
            return;
        }
    };
    let _ = exchange.reply(Response::new(Bytes::from(text)));
}

/// The service, as its tests see it: its first process.
struct Service {
    first: Child,
    addrs: Vec<String>,
}

impl Service {
    fn start(addrs: &[&str]) -> Self {
        let mut first = Command::new(env::current_exe().unwrap())
            .args(["--exact", "service", "--nocapture"])
            .env(ADDRS, addrs.join("\n"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut says = BufReader::new(first.stdout.take().unwrap()).lines();
        let serving = says.by_ref().map(Result::unwrap).filter_map(|line| {
            let addr = line.split_once("serving ")?.1;
            Some(addr.to_owned())
        });
        let addrs = serving.take(addrs.len()).collect();
        // All generations write there.
        std::thread::spawn(move || says.for_each(drop));
        Self { first, addrs }
    }

    fn get(&self, target: &str) -> String {
        get(&self.addrs[0], target)
    }

    /// Ends the process that serves now.
    fn stop(&self) {
        for addr in &self.addrs {
            get(addr, "/stop");
        }
    }
}

fn get(addr: &str, target: &str) -> String {
    let mut stream = TcpStream::connect(addr).unwrap();
    write!(
        stream,
        "GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    text.split_once("\r\n\r\n").unwrap().1.to_owned()
}

#[test]
fn the_new_process_takes_over() {
    let mut service = Service::start(&["127.0.0.1:0", "127.0.0.1:0"]);
    let first = service.get("/");
    let answer = service.get("/restart");
    let second = answer.strip_prefix("ok ").expect(&answer);
    assert_ne!(first, second);
    assert!(service.first.wait().unwrap().success());
    for addr in &service.addrs {
        assert_eq!(get(addr, "/"), second);
    }
    let info = service.get("/info");
    assert!(
        info.contains("generation: 1") && info.contains("predecessors: []"),
        "{info}"
    );
    assert!(
        service
            .get("/log")
            .contains(&format!("took over from PID {first}"))
    );
    service.stop();
}

#[test]
fn if_the_new_process_fails_the_old_one_goes_on() {
    let service = Service::start(&["127.0.0.1:0", "127.0.0.1:0"]);
    let first = service.get("/");
    let answer = service.get("/restart?fault=panic");
    assert!(answer.starts_with("failed PID"), "{answer}");
    assert!(
        answer.contains("has exited with status 101 before it was ready"),
        "{answer}"
    );
    assert!(
        answer.contains("something is missing"),
        "its own words: {answer}"
    );
    assert_eq!(service.get("/"), first);
    let answer = service.get("/restart?fault=hang&ready=300");
    assert!(answer.contains("was not ready after 300ms"), "{answer}");
    let forgotten = &service.addrs[1];
    let answer = service.get("/restart?fault=forget&ready=300");
    assert!(
        answer.contains(&format!("nobody listens on {forgotten}")),
        "{answer}"
    );
    assert_eq!(service.get("/"), first);
    // And it can still be restarted.
    let answer = service.get("/restart");
    assert!(answer.starts_with("ok"), "{answer}");
    service.stop();
}

#[test]
fn a_canary_shows_whether_the_new_process_works() {
    let service = Service::start(&["127.0.0.1:0", "127.0.0.1:0"]);
    let first = service.get("/");
    for (target, said) in [
        ("/nothing", "the canary GET /nothing was answered by 404"),
        (
            "/kept",
            "was not ready after 500ms: the canary is not answered",
        ),
    ] {
        let answer = service.get(&format!("/restart?canary={target}&ready=500"));
        assert!(
            answer.starts_with("failed") && answer.contains(said),
            "{answer}"
        );
        assert_eq!(service.get("/"), first);
    }
    let answer = service.get("/restart?canary=/well");
    assert!(answer.starts_with("ok"), "{answer}");
    service.stop();
}

#[test]
fn a_server_can_be_restarted_as_soon_as_it_is_there() {
    let _alone = ONE_SERVER.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..10 {
        let server = serve(Listener::bind("127.0.0.1:0").unwrap());
        let restart = Restart::default().before(|| Err("so far".into()));
        let error = server.restart_blocking(restart).unwrap_err();
        assert_eq!(error.to_string(), "refused: so far");
        server.stop_blocking().unwrap();
        server.close();
    }
}

#[test]
fn what_the_host_has_given_is_dropped_before_the_result_is_told() {
    let _alone = ONE_SERVER.lock().unwrap_or_else(PoisonError::into_inner);
    let server = serve(Listener::bind("127.0.0.1:0").unwrap());
    let hosts = Arc::new(());
    let (asked, told) = (Arc::clone(&hosts), Arc::clone(&hosts));
    let (tell, tells) = std::sync::mpsc::channel();
    let restart = Restart::default()
        .before(move || Err(format!("{asked:?}")))
        .on_end(move |_| tell.send(Arc::strong_count(&told)).unwrap());
    server.restart_blocking(restart).unwrap_err();
    assert_eq!(tells.recv().unwrap(), 3, "while it is told");
    assert_eq!(Arc::strong_count(&hosts), 1);
    server.stop_blocking().unwrap();
    server.close();
}

#[test]
fn what_cannot_be_started_is_refused_at_once() {
    let _alone = ONE_SERVER.lock().unwrap_or_else(PoisonError::into_inner);
    let server = serve(Listener::bind("127.0.0.1:0").unwrap());
    let no_args: [&str; 0] = [];
    let wrong = [
        (
            Restart::default().program("bin/app"),
            "bin/app is not absolute",
        ),
        (Restart::default().args(no_args), "there are no arguments"),
        (Restart::default().args(["app", "a\0b"]), "zero byte"),
        (
            Restart::default().env([("A", "b"), ("C=", "d")]),
            "\"C=\" is no name",
        ),
        (Restart::default().env([("", "secret")]), "\"\" is no name"),
        (Restart::default().env([("A", "b\0c")]), "zero byte"),
        (Restart::default().directory("/a\0b"), "zero byte"),
    ];
    for (restart, why) in wrong {
        let error = server.restart_begin(restart).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument(_)), "{error:?}");
        assert!(error.to_string().contains(why), "{error}");
    }
    server.stop_blocking().unwrap();
    server.close();
}
