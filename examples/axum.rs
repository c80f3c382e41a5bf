//! An axum application that stops without dropping a request, and without waiting for streams that never end.
//!
//! ```text
//! cargo run --example axum & sleep 1; curl -N http://127.0.0.1:8080/events & sleep 3; kill %1; wait
//! ```
//!
//! A stop waits for every response, and for every WebSocket. Those that would go on for ever would be cut at the stop
//! timeout; here they end when the stop begins.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Extension, State};
use axum::response::Response;
use axum::response::sse::{Event, Sse};
use axum::routing::{any, get};
use futures_util::stream::{self, Stream};
use httpdown::{ConnInfo, Listener, Phase, Result, Server, Signals};
use tokio::runtime::Handle;
use tokio::sync::watch;

/// Becomes true when the server stops, and no new client can come.
type Stopping = watch::Receiver<bool>;

async fn stopped(stopping: &mut Stopping) {
    // That there is no server any more is as good.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

async fn hello(Extension(conn): Extension<ConnInfo>) -> String {
    format!("Hello, {}!\n", conn.peer)
}

/// An event a second.
async fn events(
    State(stopping): State<Stopping>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let numbers = stream::unfold((0_u64, stopping), async |(number, mut stopping)| {
        let event = Event::default().data(number.to_string());
        if number > 0 {
            tokio::select! {
                () = stopped(&mut stopping) => return None,
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
        Some((Ok(event), (number + 1, stopping)))
    });
    Sse::new(numbers)
}

/// Sends back what it is sent.
async fn echo(upgrade: WebSocketUpgrade, State(stopping): State<Stopping>) -> Response {
    upgrade.on_upgrade(|socket| echo_on(socket, stopping))
}

async fn echo_on(mut socket: WebSocket, mut stopping: Stopping) {
    loop {
        let message = tokio::select! {
            () = stopped(&mut stopping) => {
                let _ = socket.send(Message::Close(None)).await;
                return;
            }
            message = socket.recv() => message,
        };
        let sent = match message {
            Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))) => socket.send(message),
            Some(Ok(_)) => continue,
            Some(Err(_)) | None => return,
        };
        if sent.await.is_err() {
            return;
        }
    }
}

/// On the runtime that this is called on: axum spawns a task for each WebSocket.
pub(crate) fn serve(listener: Listener) -> Result<Server> {
    let (stop, stopping) = watch::channel(false);
    let app = Router::new()
        .route("/", get(hello))
        .route("/events", get(events))
        .route("/echo", any(echo))
        .with_state(stopping);
    Server::builder()
        .runtime(Handle::current())
        .conn_info(true)
        .ready_path("/healthz")
        .on_phase(move |phase| {
            // Not before: in a lame duck, clients that are sent away come again.
            if phase == Phase::Quiescing {
                stop.send_replace(true);
            }
        })
        .serve_tower(listener, app)
}

#[tokio::main]
async fn main() -> Result<()> {
    // Before the server starts, so that none is missed.
    let signals = Signals::catch()?;
    let server = serve(Listener::bind("127.0.0.1:8080")?)?;
    println!("serving on http://{}/", server.local_addrs()[0]);
    let report = signals.run_async(&server).await?;
    println!("{} requests, all of them finished", report.requests);
    Ok(())
}
