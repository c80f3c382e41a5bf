//! Several servers that run until a signal.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a helper that fails fails its test"
)]

mod common;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use common::*;
use httpdown::{Addr, Dispatch, Error, Exchange, Identity, Server, Signals, Tls};
use rustix::process::Signal;
use tokio::runtime::Handle;

/// The signals belong to the process, so one test has them at a time.
fn alone() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

fn signal(signal: Signal) {
    rustix::process::kill_process(rustix::process::getpid(), signal).unwrap();
}

/// A server whose handler tells that it is in, and answers when the gate opens.
fn slow(gate: &Gate, entered: &Journal<()>) -> Server {
    let (gate, entered) = (gate.clone(), entered.clone());
    let handler = move |exchange: Exchange| {
        entered.write(());
        gate.pass();
        let _ = reply(exchange, "slow");
    };
    builder()
        .handle(listener(), Dispatch::default(), handler)
        .unwrap()
}

#[test]
fn a_signal_stops_several_servers_at_the_same_time() {
    let _alone = alone();
    let (gate, entered) = (Gate::new(), Journal::new());
    let signals = Signals::catch().unwrap();
    let servers: Vec<Server> = (0..3).map(|_| slow(&gate, &entered)).collect();
    let addrs: Vec<&Addr> = servers.iter().map(addr).collect();
    let clients: Vec<_> = addrs
        .iter()
        .map(|&addr| thread::spawn(move || Client::get(addr, "/").answer().text().to_owned()))
        .collect();
    entered.wait_for_count(3);
    let drains = servers.clone();
    let opening = thread::spawn(move || {
        signal(Signal::TERM);
        // Each of them, while none of them can end.
        for server in &drains {
            wait_for_phase(server, httpdown::Phase::Draining);
        }
        gate.open();
    });
    let reports = signals.run_all(&servers).unwrap();
    let served: Vec<u64> = reports.iter().map(|report| report.served).collect();
    assert_eq!(served, [1, 1, 1]);
    opening.join().unwrap();
    for client in clients {
        assert_eq!(client.join().unwrap(), "slow");
    }
    // What has ended does not keep a run from ending.
    let last = hello(builder(), listener());
    let all = [servers[0].clone(), last.clone()];
    last.stop_begin();
    assert_eq!(last.run().unwrap().served, 0);
    assert_eq!(
        Signals::catch().unwrap().run_all(&all).unwrap()[0].served,
        1
    );
    servers.into_iter().for_each(Server::close);
}

#[test]
fn the_result_of_several_servers_is_the_worst_and_each_has_its_own() {
    let _alone = alone();
    let (gate, entered) = (Gate::new(), Journal::new());
    let _opens = gate.open_at_end();
    let cut = |kill_timeout| {
        let (gate, entered) = (gate.clone(), entered.clone());
        let handler = move |exchange: Exchange| {
            entered.write(());
            gate.pass();
            drop(exchange);
        };
        builder()
            .stop_timeout(Duration::ZERO)
            .kill_timeout(kill_timeout)
            .handle(listener(), Dispatch::default(), handler)
            .unwrap()
    };
    let well = hello(builder(), listener());
    let abandons = cut(Duration::ZERO);
    let servers = [well, abandons];
    let mut client = Client::get(addr(&servers[1]), "/");
    entered.wait_for_count(1);
    let signalling = thread::spawn(|| signal(Signal::INT));
    let result = Signals::catch().and_then(|signals| {
        signalling.join().unwrap();
        signals.run_all(&servers)
    });
    let error = result.unwrap_err();
    assert!(matches!(error, Error::TimedOut(_)), "{error:?}");
    assert_eq!(error.report().unwrap().abandoned, 1);
    assert!(matches!(servers[0].outcome(), Some(Ok(()))));
    assert!(matches!(
        servers[1].outcome(),
        Some(Err(Error::TimedOut(_)))
    ));
    client.try_answer().unwrap_err();
}

#[test]
fn several_servers_run_in_async_code_on_the_only_thread_of_a_runtime() {
    let _alone = alone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let reports = runtime.block_on(async {
        let signals = Signals::catch().unwrap();
        let serve = || hello(builder().runtime(Handle::current()), listener());
        let servers = [serve(), serve()];
        // On this thread nothing may block.
        let blocking = Signals::catch();
        assert!(
            matches!(blocking, Err(Error::Unsupported(_))),
            "{blocking:?}"
        );
        let addrs = servers.each_ref().map(addr);
        let client = thread::spawn(move || {
            for addr in addrs {
                Client::get(addr, "/").answer();
            }
            signal(Signal::TERM);
        });
        let reports = signals.run_all_async(&servers).await.unwrap();
        client.join().unwrap();
        reports
    });
    assert_eq!(reports.len(), 2);
    assert!(reports.iter().all(|report| report.served == 1));
}

#[test]
fn a_blocking_run_is_refused_for_all_if_it_is_for_one() {
    let _alone = alone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let other = hello(builder(), listener());
        let own = hello(builder().runtime(Handle::current()), listener());
        let servers = [other, own];
        let refused = Signals::catch().unwrap().run_all(&servers);
        assert!(matches!(refused, Err(Error::WouldDeadlock)), "{refused:?}");
        // No stop has begun, and the signals are as they were.
        assert!(servers.iter().all(Server::is_ready));
        drop(Signals::catch().unwrap());
        for server in servers {
            server.stop().await.unwrap();
        }
    });
}

#[test]
fn a_run_of_no_servers_is_refused() {
    let _alone = alone();
    let refused = Signals::catch().unwrap().run_all(&[]);
    assert!(
        matches!(refused, Err(Error::InvalidArgument(_))),
        "{refused:?}"
    );
    drop(Signals::catch().unwrap());
}

#[test]
fn a_hangup_is_for_each_server_that_wants_it_even_before_the_run() {
    let _alone = alone();
    let folder = std::env::temp_dir().join(format!("httpdown-run-all-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let pair = tls::Authority::of_servers().issue(&["localhost"]);
    let [chain, key] = ["chain.pem", "key.pem"].map(|name| folder.join(name));
    std::fs::write(&chain, &pair.chain).unwrap();
    std::fs::write(&key, &pair.key).unwrap();
    let logs = Journal::new();
    let serve = |name: &'static str, wants: bool| {
        let writes = logs.clone();
        let identity = Identity::from_pem_files(&chain, &key).unwrap();
        builder()
            .tls(Tls::new(identity))
            .reload_on_hup(wants)
            .on_log(move |_, text| writes.write((name, text.to_owned())))
            .handle(listener(), Dispatch::default(), |exchange: Exchange| {
                let _ = reply(exchange, "");
            })
            .unwrap()
    };
    let read = |name: &'static str, times: usize| {
        logs.wait_until(|logs| {
            let is_it = |(of, text): &&(&str, String)| *of == name && text.contains("read again");
            logs.iter().filter(is_it).count() == times
        });
    };

    let signals = Signals::catch().unwrap().with_hangup().unwrap();
    let servers = [
        serve("first", true),
        serve("second", false),
        serve("third", true),
    ];
    signal(Signal::HUP);
    thread::scope(|scope| {
        scope.spawn(|| {
            for times in 1..=3 {
                read("first", times);
                read("third", times);
                signal(if times < 3 { Signal::HUP } else { Signal::TERM });
            }
        });
        signals.run_all(&servers).unwrap();
    });
    assert!(logs.all().iter().all(|(of, _)| *of != "second"));
    std::fs::remove_dir_all(&folder).unwrap();
}
