//! A runtime of the host's, on which the server's connections are driven: what waits there must not wait for itself.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a helper that fails fails its test"
)]

mod common;

use std::convert::Infallible;
use std::sync::mpsc;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::*;
use http::{Request, Response};
use http_body_util::Full;
use httpdown::{Body, Dispatch, Error, Exchange, Report, Server, Signals};
use hyper::service::service_fn;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::Notify;

type Waited = httpdown::Result<Report>;

/// Much less than the stop timeout of [`serve`]: what returns by then has not waited for it.
const SOON: Duration = Duration::from_secs(8);

fn current_thread() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn multi_thread(workers: usize) -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()
        .unwrap()
}

/// A server on the runtime of whoever calls this. `then` is what its service does; it may answer late.
fn serve<F>(then: impl Fn(Server) -> F + Clone + Send + 'static) -> Server
where
    F: Future<Output = String> + Send + 'static,
{
    let running = Arc::new(OnceLock::<Server>::new());
    let known = Arc::clone(&running);
    let service = service_fn(move |_: Request<Body>| {
        let answer = then(known.wait().clone());
        async move { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(answer.await)))) }
    });
    let server = builder()
        .stop_timeout(2 * SOON)
        .kill_timeout(Duration::from_secs(1))
        .runtime(Handle::current())
        .serve(listener(), service)
        .unwrap();
    running.set(server.clone()).unwrap();
    server
}

/// A server with a request under way, and what lets it end.
async fn busy() -> (Server, Arc<Notify>, thread::JoinHandle<String>) {
    let (begun, end) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (begins, ends) = (Arc::clone(&begun), Arc::clone(&end));
    let server = serve(move |_| {
        let (begins, ends) = (Arc::clone(&begins), Arc::clone(&ends));
        async move {
            begins.notify_one();
            ends.notified().await;
            "done".into()
        }
    });
    let addr = addr(&server);
    let client = thread::spawn(move || Client::get(addr, "/").answer().text().to_owned());
    begun.notified().await;
    (server, end, client)
}

/// A call by its name.
type Wait = (&'static str, fn(&Server) -> Waited);

/// Every one that blocks until the server has ended.
fn blocking_waits() -> [Wait; 4] {
    [
        ("stop", Server::stop_blocking),
        ("wait", |server| {
            server.wait_blocking(Some(Instant::now() + LONG))
        }),
        ("run", Server::run),
        ("signals", |server| Signals::catch()?.run(server)),
    ]
}

#[test]
fn the_only_thread_of_a_runtime_does_not_wait_for_what_runs_on_it() {
    for (name, wait_here) in blocking_waits() {
        for workers in [None, Some(1)] {
            let runtime = workers.map_or_else(current_thread, multi_thread);
            // `block_on` itself is such a thread only where there is no other.
            let task = runtime.spawn(async move {
                let (server, end, client) = busy().await;
                let began = Instant::now();
                let result = wait_here(&server);
                assert!(
                    matches!(result, Err(Error::WouldDeadlock)),
                    "{name}: {result:?}"
                );
                assert!(began.elapsed() < SOON, "{name}");
                end.notify_one();
                assert_eq!(server.stop().await.unwrap().served, 1, "{name}");
                client
            });
            let client = runtime.block_on(task).unwrap();
            assert_eq!(client.join().unwrap(), "done");
        }
    }
}

#[test]
fn a_run_on_the_only_thread_of_a_runtime_is_refused_before_it_has_served_anything() {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        current_thread().block_on(async {
            let server = serve(async |_| "hello".into());
            tell.send(server.run()).unwrap();
            server.stop().await.unwrap();
        });
    });
    let result = told.recv_timeout(SOON).expect("it goes on");
    assert!(matches!(result, Err(Error::WouldDeadlock)), "{result:?}");
}

#[test]
fn to_close_a_server_on_the_only_thread_of_its_runtime_returns_and_the_rest_follows() {
    current_thread().block_on(async {
        let (server, end, client) = busy().await;
        let began = Instant::now();
        server.clone().close();
        assert!(began.elapsed() < SOON);
        end.notify_one();
        assert_eq!(server.wait().await.unwrap().served, 1);
        assert_eq!(client.join().unwrap(), "done");
    });
}

#[test]
fn a_blocking_wait_beside_a_runtime_waits_for_it_however_long_that_is_blocked() {
    for workers in [None, Some(1)] {
        let runtime = workers.map_or_else(current_thread, multi_thread);
        let gate = Gate::new();
        let (passes, begun) = (gate.clone(), Journal::new());
        let begins = begun.clone();
        let task = runtime.spawn(async move {
            let server = serve(move |_| {
                begins.write(());
                passes.pass();
                async { "late".into() }
            });
            let addr = addr(&server);
            let client = thread::spawn(move || Client::get(addr, "/").answer().text().to_owned());
            let (tell, told) = mpsc::channel();
            let blocking = tokio::task::spawn_blocking(move || {
                begun.wait_for_count(1);
                tell.send(server.stop_blocking()).unwrap();
            });
            (told, client, blocking)
        });
        let driving = thread::spawn(move || {
            runtime.block_on(async {
                let (told, client, blocking) = task.await.unwrap();
                blocking.await.unwrap();
                (told.recv().unwrap(), client)
            })
        });
        // Longer than it takes to find out that nobody drives a runtime.
        thread::sleep(Duration::from_millis(1_500));
        gate.open();
        let (result, client) = driving.join().unwrap();
        assert_eq!(result.unwrap().served, 1, "workers: {workers:?}");
        assert_eq!(client.join().unwrap(), "late");
    }
}

#[test]
fn a_thread_of_a_runtime_that_gets_on_without_it_may_wait() {
    let runtime = multi_thread(2);
    let report = runtime.block_on(async {
        let (server, end, client) = busy().await;
        end.notify_one();
        let report = server.stop_blocking().unwrap();
        assert_eq!(client.join().unwrap(), "done");
        report
    });
    assert_eq!(report.served, 1);
}

/// A stop that a service waits for would wait for the service; one that a task of its waits for does not.
fn stop_within_a_service(runtime: &Runtime) {
    let server = runtime.block_on(async {
        serve(|server| async move {
            let began = Instant::now();
            let results = [
                format!("{:?}", server.stop().await),
                format!("{:?}", server.wait().await),
                format!("{:?}", server.stop_blocking()),
            ];
            // Not even found out by a look at what gets on.
            assert!(began.elapsed() < Duration::from_millis(900));
            let beside = tokio::spawn(async move { server.wait().await });
            assert!(!beside.is_finished());
            results.join(" ")
        })
    });
    let addr = addr(&server);
    let client = thread::spawn(move || Client::get(addr, "/").answer().text().to_owned());
    let report = runtime.block_on(server.wait()).unwrap();
    assert_eq!(report.served, 1);
    let refused = "Err(WouldDeadlock)";
    assert_eq!(
        client.join().unwrap(),
        [refused, refused, refused].join(" ")
    );
}

#[test]
fn a_service_on_a_runtime_of_the_hosts_cannot_wait_for_the_stop() {
    stop_within_a_service(&current_thread());
    stop_within_a_service(&multi_thread(2));
}

/// Also where the wait was begun outside of it.
#[test]
fn a_wait_that_a_service_goes_on_with_is_refused_there() {
    current_thread().block_on(async {
        let given = Arc::new(std::sync::Mutex::new(None));
        let takes = Arc::clone(&given);
        let server = serve(move |_| {
            let waiting = takes.lock().unwrap().take();
            async move {
                let waiting: std::pin::Pin<Box<dyn Future<Output = Waited> + Send>> =
                    waiting.unwrap();
                format!("{:?}", waiting.await)
            }
        });
        let waiting = server.clone();
        let mut waiting = Box::pin(async move { waiting.wait().await });
        assert!(futures_poll(waiting.as_mut()).is_pending());
        *given.lock().unwrap() = Some(waiting as _);
        let addr = addr(&server);
        let client =
            tokio::task::spawn_blocking(move || Client::get(addr, "/").answer().text().to_owned());
        assert_eq!(client.await.unwrap(), "Err(WouldDeadlock)");
        server.stop().await.unwrap();
    });
}

fn futures_poll<F: Future>(future: std::pin::Pin<&mut F>) -> std::task::Poll<F::Output> {
    future.poll(&mut std::task::Context::from_waker(std::task::Waker::noop()))
}

/// What comes over the connections of a runtime does not come while its only thread waits for it.
#[test]
fn the_only_thread_of_a_runtime_does_not_wait_for_requests_and_bodies_either() {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        current_thread().block_on(async {
            let (server, queue) = builder()
                .runtime(Handle::current())
                .queue(listener())
                .unwrap();
            let mut client = Client::connect(addr(&server));
            client.send("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n");
            tell.send(format!("{:?}", queue.take(1, None))).unwrap();
            let mut exchange = loop {
                tokio::task::yield_now().await;
                match queue.take(1, Some(Instant::now())) {
                    Ok(mut taken) => break taken.pop().unwrap(),
                    Err(error) => assert!(matches!(error, Error::WouldBlock), "{error}"),
                }
            };
            tell.send(format!("{:?}", exchange.read(&mut [0; 5])))
                .unwrap();
            exchange.start(Response::new(())).unwrap();
            // What finds nothing waiting is taken, whatever its length.
            exchange.write(&vec![0; 20 << 20]).unwrap();
            tell.send(format!("{:?}", exchange.write(b"more"))).unwrap();
            drop(exchange);
            let _ = server.stop().await;
        });
    });
    for expected in ["Err(WouldDeadlock)", "Err(WouldBlock)", "Err(WouldBlock)"] {
        let result = told.recv_timeout(SOON).expect("it goes on");
        assert_eq!(result, expected);
    }
}

#[test]
fn a_thread_beside_a_runtime_gets_requests_and_bodies_that_come_over_it() {
    let runtime = current_thread();
    let report = runtime.block_on(async {
        let (server, queue) = builder()
            .runtime(Handle::current())
            .queue(listener())
            .unwrap();
        let mut client = Client::connect(addr(&server));
        client.send("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n");
        let serving = tokio::task::spawn_blocking(move || {
            let mut exchange = queue.take(1, None).unwrap().pop().unwrap();
            client.send("hello");
            assert_eq!(exchange.read_to_end(10).unwrap(), "hello");
            let text = vec![b'x'; 1 << 20];
            exchange.start(Response::new(())).unwrap();
            let reading = thread::spawn(move || client.answer().text().len());
            exchange.write(&text).unwrap();
            exchange.finish().unwrap();
            reading.join().unwrap()
        });
        assert_eq!(serving.await.unwrap(), 1 << 20);
        server.stop().await.unwrap()
    });
    assert_eq!(report.served, 1);
}

/// In place it always was so; see tests/host.rs.
#[test]
fn a_pool_beside_a_runtime_of_the_hosts_may_block() {
    let runtime = current_thread();
    let report = runtime.block_on(async {
        let server = builder()
            .runtime(Handle::current())
            .handle(listener(), Dispatch::default(), |mut exchange: Exchange| {
                let body = exchange.read_to_end(10).unwrap();
                exchange.reply(Response::new(body)).unwrap();
            })
            .unwrap();
        let addr = addr(&server);
        let client = tokio::task::spawn_blocking(move || {
            let mut client = Client::connect(addr);
            client.send("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n");
            client.send("hello");
            client.answer().text().to_owned()
        });
        assert_eq!(client.await.unwrap(), "hello");
        server.stop().await.unwrap()
    });
    assert_eq!(report.served, 1);
}
