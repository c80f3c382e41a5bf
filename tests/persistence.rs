//! What the head of an answer says of its connection is what happens: it goes on, or it ends.
#![allow(clippy::unwrap_used, reason = "a test that fails panics")]

mod common;

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use common::{
    Client, Unsized, addr, assert_balanced, builder, each_way, listener, stop, wait, wait_for_phase,
};
use http::{Request, Response, Uri};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use httpdown::{Body, Builder, Exchange, Phase, Server};
use hyper::service::service_fn;

/// What a target asks for: `/kind?value of Connection`.
fn asked(uri: &Uri) -> (Response<()>, bool) {
    let kind = &uri.path()[1..];
    let mut response = Response::new(());
    let headers = response.headers_mut();
    for option in uri.query().unwrap_or_default().split('&') {
        if !option.is_empty() {
            let value = option.replace('+', " ").parse().unwrap();
            headers.append("connection", value);
        }
    }
    match kind {
        "204" | "304" => *response.status_mut() = kind.parse::<u16>().unwrap().try_into().unwrap(),
        "length" => {
            headers.insert("content-length", "5".parse().unwrap());
        }
        "chunked" => {
            headers.insert("transfer-encoding", "chunked".parse().unwrap());
        }
        "keep-alive" => {
            headers.insert("keep-alive", "max=9".parse().unwrap());
        }
        _ => {}
    }
    (response, matches!(kind, "pieces" | "length" | "chunked"))
}

fn answer(mut exchange: Exchange) {
    let (mut head, in_pieces) = asked(exchange.uri());
    head.headers_mut().remove("transfer-encoding");
    if in_pieces {
        exchange.start(head).unwrap();
        let _ = exchange.write(b"hello");
        let _ = exchange.finish();
    } else {
        exchange.reply(head.map(|()| "hello".into())).unwrap();
    }
}

async fn serve(
    request: Request<Body>,
) -> Result<Response<UnsyncBoxBody<Bytes, Infallible>>, Infallible> {
    let (head, in_pieces) = asked(request.uri());
    let hello = Bytes::from_static(b"hello");
    let body = if in_pieces {
        Unsized(Full::new(hello)).boxed_unsync()
    } else {
        Full::new(hello).boxed_unsync()
    };
    Ok(head.map(|()| body))
}

fn servers(builder: impl Fn() -> Builder) -> Vec<Server> {
    let mut servers = Vec::from(each_way(&builder, answer));
    let service = service_fn(serve);
    servers.push(builder().serve(listener(), service).unwrap());
    servers
}

const KINDS: [&str; 7] = [
    "",
    "pieces",
    "length",
    "chunked",
    "204",
    "304",
    "keep-alive",
];
const ASKED: [&str; 6] = [
    "",
    "keep-alive",
    "close",
    "Close, Keep-Alive",
    "x, KEEP-ALIVE",
    "x",
];
const SAID: [&str; 8] = [
    "",
    "keep-alive",
    "close",
    "close,+x",
    "x",
    "x,Keep-Alive",
    "keep-alive&Close",
    "x&y",
];

/// What a `Connection` says: its options, in lower case.
fn options(headers: &[(String, String)]) -> Vec<String> {
    let fields = headers.iter().filter(|(name, _)| name == "connection");
    let options = fields.flat_map(|(_, value)| value.split(','));
    options.map(|option| option.trim().to_owned()).collect()
}

/// Asks, and says whether the connection has gone on, as the answer said.
fn goes_on(server: &Server, request: &str, text: &str) -> bool {
    let mut client = Client::connect(addr(server));
    client.send(request);
    let head = client.try_head().unwrap();
    let options = options(&head.headers);
    let has = |option: &str| options.iter().any(|it| it == option);
    assert!(!(has("close") && has("keep-alive")), "{text}: {head:?}");
    let fields = head.headers.iter().filter(|(name, _)| name == "connection");
    assert!(fields.count() <= 1, "{text}: {head:?}");
    assert!(
        !has("close") || head.header("keep-alive").is_none(),
        "{text}: {head:?}"
    );
    // Whatever else a handler says there is kept.
    assert_eq!(
        has("x"),
        text.split("handler").nth(1).unwrap().contains('x'),
        "{text}: {head:?}"
    );
    let is_old = request.contains("HTTP/1.0");
    let says = !has("close") && (!is_old || has("keep-alive"));
    let is_bodyless = request.starts_with("HEAD") || matches!(head.status, 204 | 304);
    if is_bodyless {
        // What is there then is not its body.
    } else if head.header("content-length").is_some() || head.header("transfer-encoding").is_some()
    {
        assert_eq!(client.try_body(&head).unwrap(), b"hello", "{text}");
    } else {
        assert!(!says, "{text} has no end: {head:?}");
        assert_eq!(client.until_end().unwrap(), b"hello", "{text}");
    }
    if says {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.answer().text(), "hello", "{text}: {head:?}");
    } else {
        client.assert_closed();
    }
    says
}

/// Each combination; `check` gets it, whether the connection could go on, and whether it has.
fn combinations(server: &Server, mut check: impl FnMut(&str, bool, bool)) {
    for version in ["1.0", "1.1"] {
        for method in ["GET", "HEAD"] {
            for kind in KINDS {
                for asked in ASKED {
                    for said in SAID {
                        let text =
                            format!("{method} {kind}, {version} {asked:?}, handler {said:?}");
                        let connection = match asked {
                            "" => String::new(),
                            asked => format!("Connection: {asked}\r\n"),
                        };
                        let request = format!(
                            "{method} /{kind}?{said} HTTP/{version}\r\nHost: a\r\n{connection}\r\n"
                        );
                        let goes_on = goes_on(server, &request, &text);
                        let asked = asked.to_lowercase();
                        let wanted = !asked.contains("close")
                            && (version == "1.1" || asked.contains("keep-alive"));
                        let has_end = version == "1.1"
                            || method == "HEAD"
                            || !matches!(kind, "pieces" | "chunked");
                        let may = wanted && has_end && !said.to_lowercase().contains("close");
                        check(&text, may, goes_on);
                    }
                }
            }
        }
    }
}

#[test]
fn an_answer_says_whether_its_connection_goes_on() {
    let timeout = Duration::from_secs(60);
    for announces in [false, true] {
        let builder = || builder().idle_timeout(timeout).keep_alive_header(announces);
        for (way, server) in servers(builder).into_iter().enumerate() {
            if announces && way > 0 {
                continue; // They differ in nothing that matters here.
            }
            combinations(&server, |text, may, goes_on| {
                assert_eq!(may, goes_on, "{text}");
            });
            assert_balanced(&stop(&server).unwrap());
        }
    }
}

#[test]
fn in_a_lame_duck_it_says_that_it_ends() {
    for server in servers(|| builder().lame_duck(Duration::from_secs(600))) {
        server.stop_begin();
        wait_for_phase(&server, Phase::LameDuck);
        combinations(&server, |text, _, goes_on| assert!(!goes_on, "{text}"));
        server.kill_begin();
        let _ = wait(&server);
    }
}
