//! The cases in `tests/corpus`: requests as clients, proxies and attackers send them, and what RFC 9110 and RFC 9112
//! want done with them. `tests/corpus/README.md` says how to add one.
#![allow(clippy::unwrap_used, reason = "a test that fails panics")]

mod common;

use std::fmt::{self, Write as _};
use std::io::{self, ErrorKind};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, thread};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body::Frame;
use http_body_util::{BodyExt as _, Either, Full, StreamBody};
use httpdown::{Body, Dispatch, Error, Exchange, Server};
use hyper::service::service_fn;

use common::{Answer, Client, Journal, Place, addr, assert_balanced, builder, listener, stop};

/// Nothing that a case waits for takes longer, on however slow a machine.
const PATIENCE: Duration = Duration::from_secs(20);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The client's bytes up to a 100 that it waits for, or up to the end.
type Part = Vec<u8>;

#[derive(Clone, Debug, Default)]
struct Case {
    file: String,
    line: usize,
    name: String,
    rule: String,
    /// The client waits for a 100 between two of them.
    parts: Vec<Part>,
    verdict: Option<Verdict>,
    /// What the server does instead, and why that stays.
    known: Option<(Verdict, String)>,
    /// The method and the target.
    sees: Option<String>,
    /// Lines that the handler sees.
    fields: Vec<String>,
    /// Names of fields that it does not see.
    no_fields: Vec<String>,
    body: Vec<u8>,
}

/// What is to become of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Verdict {
    /// A handler answers. Otherwise the server does.
    is_accepted: bool,
    /// 0 if there is no answer.
    status: u16,
    /// There is a 100 before it.
    is_asked: bool,
    /// The connection goes on behind it.
    goes_on: bool,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let behind = if self.is_asked { " behind 100" } else { "" };
        match (self.is_accepted, self.status) {
            (true, status) => {
                let then = if self.goes_on { "goes on" } else { "closes" };
                write!(f, "accept {status}{behind}, {then}")
            }
            (false, 0) => write!(f, "close"),
            (false, status) => write!(f, "refuse {status}{behind}"),
        }
    }
}

impl Verdict {
    fn parse(text: &str) -> Option<Self> {
        let mut verdict = Self {
            is_accepted: false,
            status: 0,
            is_asked: false,
            goes_on: false,
        };
        if text == "close" {
            return Some(verdict);
        }
        let (rest, then) = text.split_once(", ").unwrap_or((text, ""));
        let (what, rest) = rest.split_once(' ')?;
        let status = rest.strip_suffix(" behind 100");
        verdict.is_asked = status.is_some();
        verdict.status = status.unwrap_or(rest).parse().ok()?;
        (verdict.is_accepted, verdict.goes_on) = match (what, then) {
            ("accept", "goes on") => (true, true),
            ("accept", "closes") => (true, false),
            ("refuse", "") => (false, false),
            _ => return None,
        };
        Some(verdict)
    }
}

impl Case {
    /// What the server is to do today.
    fn expected(&self) -> Verdict {
        let known = self.known.as_ref().map(|(verdict, _)| *verdict);
        known.or(self.verdict).unwrap()
    }

    /// The first thing that is missing in it.
    fn lacks(&self) -> Option<&'static str> {
        let accepts = self.verdict.is_some_and(|verdict| verdict.is_accepted);
        let is_rule = self.rule.starts_with("RFC 9110, ") || self.rule.starts_with("RFC 9112, ");
        [
            (!self.name.is_empty(), "a name"),
            (is_rule, "a rule (RFC 9110 or RFC 9112, and the section)"),
            (!self.parts.concat().is_empty(), "bytes"),
            (self.verdict.is_some(), "a verdict"),
            (
                !accepts || self.sees.is_some(),
                "what the handler sees (sees:)",
            ),
        ]
        .into_iter()
        .find_map(|(is_there, what)| (!is_there).then_some(what))
    }
}

/// The cases of a file.
fn parse(file: &str, text: &str) -> Result<Vec<Case>, String> {
    let mut cases: Vec<Case> = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let wrong = |why: &str| format!("{file}:{}: {why}: {line}", at + 1);
        if let Some(name) = line.strip_prefix("case: ") {
            cases.push(Case {
                file: file.to_owned(),
                line: at + 1,
                name: name.to_owned(),
                parts: vec![Vec::new()],
                ..Case::default()
            });
            continue;
        }
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let case = cases.last_mut().ok_or_else(|| wrong("there is no case"))?;
        if let Some(bytes) = line.strip_prefix("> ") {
            let bytes = unescape(bytes).ok_or_else(|| wrong("unknown escape"))?;
            case.parts.last_mut().unwrap().extend(bytes);
            continue;
        }
        let (key, value) = line.split_once(':').ok_or_else(|| wrong("no key"))?;
        let value = value.trim();
        let verdict = |text| Verdict::parse(text).ok_or_else(|| wrong("unknown verdict"));
        match key {
            "rule" => value.clone_into(&mut case.rule),
            "wait" if value == "100" => case.parts.push(Vec::new()),
            "verdict" => case.verdict = Some(verdict(value)?),
            "known" => {
                let known = value.split_once(" because ");
                let (known, why) = known.ok_or_else(|| wrong("no reason"))?;
                case.known = Some((verdict(known)?, why.to_owned()));
            }
            "sees" => {
                let sees = unescape(value).ok_or_else(|| wrong("unknown escape"))?;
                case.sees = Some(String::from_utf8(sees).map_err(|_| wrong("no text"))?);
            }
            "field" => case.fields.push(value.to_owned()),
            "no field" => case.no_fields.push(value.to_owned()),
            "body" => case.body = unescape(value).ok_or_else(|| wrong("unknown escape"))?,
            _ => return Err(wrong("unknown key")),
        }
    }
    for case in &cases {
        if let Some(what) = case.lacks() {
            return Err(format!("{file}:{}: {}: lacks {what}", case.line, case.name));
        }
    }
    Ok(cases)
}

/// `\r`, `\n`, `\t`, `\0`, `\\`, `\xHH`, and `\{COUNT:bytes}`, which is the bytes so many times.
fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        bytes.extend(rest[..at].bytes());
        let mut escape = rest[at + 1..].chars();
        let what = escape.next()?;
        rest = escape.as_str();
        match what {
            'r' => bytes.push(b'\r'),
            'n' => bytes.push(b'\n'),
            't' => bytes.push(b'\t'),
            '0' => bytes.push(0),
            '\\' => bytes.push(b'\\'),
            'x' => {
                bytes.push(u8::from_str_radix(rest.get(..2)?, 16).ok()?);
                rest = &rest[2..];
            }
            '{' => {
                // Another one may stand in it.
                let mut ends = rest.match_indices('}').map(|(at, _)| &rest[..at]);
                let inner = ends.find(|it| it.matches("\\{").count() == it.matches('}').count())?;
                let (count, repeated) = inner.split_once(':')?;
                bytes.extend(unescape(repeated)?.repeat(count.parse().ok()?));
                rest = &rest[inner.len() + 1..];
            }
            _ => return None,
        }
    }
    bytes.extend(rest.bytes());
    Some(bytes)
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

/// All cases; or, with `HTTPDOWN_CORPUS`, those with that text in their file's name or their own.
fn corpus() -> Vec<Case> {
    let files = fs::read_dir(folder()).unwrap();
    let mut files: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|kind| kind == "txt"));
    files.sort();
    let wanted = std::env::var("HTTPDOWN_CORPUS").unwrap_or_default();
    let mut cases = Vec::new();
    for path in files {
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        match parse(&file, &fs::read_to_string(&path).unwrap()) {
            Ok(more) => cases.extend(more),
            Err(why) => panic!("{why}"),
        }
    }
    cases.retain(|case| case.file.contains(&wanted) || case.name.contains(&wanted));
    cases
}

/// How a server's requests are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Service,
    Inline,
    Pool,
    Queue,
}

/// How a case's bytes come.
#[derive(Clone, Copy, Debug)]
enum Delivery {
    Whole,
    ByteByByte,
    /// In one write with a good request before it.
    Pipelined,
}

/// What has become of a case's request.
#[derive(Debug)]
struct Outcome {
    /// How often there was a 100 before the answer.
    asked: usize,
    answer: Result<Answer, End>,
    then: Then,
}

#[derive(Debug)]
enum Then {
    /// The request behind it was answered.
    GoesOn,
    /// Something else was answered: its status, and its beginning.
    Answer(u16, String),
    Ends(End),
}

/// How no more answers come.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Closed,
    Reset,
    Silence,
    /// Bytes that are no answer.
    Garbage(String),
}

#[derive(Debug)]
struct Failure {
    title: String,
    how: String,
    expected: String,
    why: Vec<String>,
    bytes: String,
}

/// What a person reads of all failures.
fn report(failures: &[Failure]) -> String {
    let mut text = String::new();
    for failure in failures {
        let Failure {
            title,
            how,
            expected,
            why,
            bytes,
        } = failure;
        let why = why.join("\n    ");
        let _ = writeln!(text, "{title}\n  {how}; expected: {expected}\n    {why}");
        let _ = writeln!(text, "  the bytes: {bytes}\n");
    }
    let _ = write!(text, "{} failed", failures.len());
    text
}

/// The bytes for a person. The middle of long ones is left out.
fn show(parts: &[Part]) -> String {
    const MOST: usize = 700;
    let shown = |part: &Part| {
        let text = part.escape_ascii().to_string();
        if text.len() <= MOST {
            return text;
        }
        let (begin, end) = (&text[..MOST / 2], &text[text.len() - MOST / 2..]);
        format!("{begin} [... {} bytes in all ...] {end}", part.len())
    };
    let parts: Vec<_> = parts.iter().map(shown).collect();
    parts.join(" [waits for 100] ")
}

/// What is wrong with the outcome.
fn faults(case: &Case, outcome: &Outcome) -> Vec<String> {
    let expected = case.expected();
    let mut faults = Vec::new();
    let mut check = |is_right: bool, why: String| {
        if !is_right {
            faults.push(why);
        }
    };
    let is_closed = matches!(outcome.then, Then::Ends(End::Closed));
    let asked = outcome.asked;
    check(
        asked == usize::from(expected.is_asked),
        format!("{asked} times 100"),
    );
    match &outcome.answer {
        Err(end) => check(
            expected.status == 0 && *end == End::Closed,
            format!("no answer: {end:?}"),
        ),
        Ok(answer) => {
            let by_handler = is_by_handler(answer);
            let by = if by_handler {
                "a handler"
            } else {
                "the server"
            };
            check(
                (answer.status, by_handler) == (expected.status, expected.is_accepted),
                format!("{by} answers {}", answer.status),
            );
            let is_http10 = case.parts.concat().windows(8).any(|it| it == b"HTTP/1.0");
            let is_honest = answer.closes() == is_closed || (is_closed && is_http10);
            check(is_honest, format!("it says close: {}", answer.closes()));
            if by_handler && expected.is_accepted {
                seen(case, &answer.body, &mut check);
            }
        }
    }
    match &outcome.then {
        Then::GoesOn => check(expected.goes_on, "it goes on".to_owned()),
        Then::Answer(status, text) => check(false, format!("then comes {status}: {text}")),
        Then::Ends(end) => check(
            is_closed && !expected.goes_on,
            format!("how it ends: {end:?}"),
        ),
    }
    if let Some((_, why)) = case.known.as_ref().filter(|_| !faults.is_empty()) {
        let verdict = case.verdict.unwrap();
        faults.push(format!("known because {why}; right would be: {verdict}"));
    }
    faults
}

/// Compares what the handler has seen with what it is to see.
fn seen(case: &Case, text: &[u8], check: &mut impl FnMut(bool, String)) {
    let end = text.windows(2).position(|it| it == b"\n\n").unwrap();
    let head = String::from_utf8_lossy(&text[..end]);
    let body = &text[end + 2..];
    let (sees, fields) = head.split_once('\n').unwrap_or((&head, ""));
    let excerpt = |text: &str| show(&[text.as_bytes().to_vec()]);
    check(
        case.sees.as_deref() == Some(sees),
        format!("the handler sees {}", excerpt(sees)),
    );
    for field in &case.fields {
        check(
            fields.lines().any(|line| line.trim_end() == field),
            format!("the handler does not see {field}, but {}", excerpt(fields)),
        );
    }
    for name in &case.no_fields {
        let begin = format!("{name}: ");
        check(
            !fields.lines().any(|line| line.starts_with(&begin)),
            format!("the handler sees {name}"),
        );
    }
    check(
        body == case.body,
        format!("the body is {}", show(&[body.to_vec()])),
    );
}

fn is_by_handler(answer: &Answer) -> bool {
    answer.header("x-by") == Some("handler")
}

/// What a handler answers: all that it sees.
fn echo(method: &Method, target: &Uri, headers: &HeaderMap, body: &[u8]) -> Bytes {
    let mut text = format!("{method} {target}\n");
    for (name, value) in headers {
        let _ = writeln!(text, "{name}: {}", value.as_bytes().escape_ascii());
    }
    Bytes::from([text.as_bytes(), b"\n", body].concat())
}

fn head(method: &Method) -> Response<()> {
    let mut response = Response::new(());
    response
        .headers_mut()
        .insert("x-by", "handler".parse().unwrap());
    if method == Method::CONNECT {
        // Otherwise it would be a tunnel.
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    }
    response
}

/// When the handler reads the body: a case says so in the field `x-handler`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reads {
    First,
    BehindItsHead,
    Never,
}

impl Reads {
    fn of(headers: &HeaderMap) -> Self {
        match headers.get("x-handler").map(http::HeaderValue::as_bytes) {
            Some(b"reads behind its head") => Self::BehindItsHead,
            Some(b"reads nothing") => Self::Never,
            _ => Self::First,
        }
    }
}

async fn serve(
    request: Request<Body>,
) -> Result<Response<impl http_body::Body<Data = Bytes, Error = BoxError>>, Error> {
    let (
        Parts {
            method,
            uri,
            headers,
            ..
        },
        body,
    ) = request.into_parts();
    let response = head(&method);
    let whole = |bytes| Either::Left(Full::new(bytes));
    let body = match Reads::of(&headers) {
        Reads::First => {
            let body = body.collect().await?.to_bytes();
            whole(echo(&method, &uri, &headers, &body))
        }
        Reads::Never => whole(echo(&method, &uri, &headers, &[])),
        Reads::BehindItsHead => {
            let rest = async move {
                let body = body.collect().await?.to_bytes();
                Ok::<_, Error>(Frame::data(echo(&method, &uri, &headers, &body)))
            };
            Either::Right(StreamBody::new(futures_util::stream::once(rest)))
        }
    };
    Ok(response.map(|()| body))
}

/// Answers, from where the body has been read so far. If it has not come yet, and this thread must not wait for it,
/// another thread goes on.
fn answer(mut exchange: Exchange, mut body: Vec<u8>) {
    let reads = Reads::of(exchange.headers());
    if reads == Reads::BehindItsHead && !exchange.is_started() {
        exchange.start(head(exchange.method())).unwrap();
    }
    while let Some(read) = (reads != Reads::Never).then(|| exchange.read_bytes(usize::MAX)) {
        match read {
            Ok(piece) if piece.is_empty() => break,
            Ok(piece) => body.extend_from_slice(&piece),
            Err(Error::WouldBlock) => {
                thread::spawn(|| answer(exchange, body));
                return;
            }
            Err(_) => return,
        }
    }
    let text = echo(exchange.method(), exchange.uri(), exchange.headers(), &body);
    // The client may have left.
    if exchange.is_started() {
        let _ = exchange.write_bytes(text);
        let _ = exchange.finish();
    } else {
        let response = head(exchange.method()).map(|()| text);
        let _ = exchange.reply(response);
    }
}

/// A server whose handlers write into the journal what paths they are asked for.
fn server(mode: Mode, paths: &Journal<String>) -> Server {
    // A client that still sends gets to know why it was refused.
    let builder = builder().linger_timeout(PATIENCE);
    // Some handlers get short bodies as they come, and others when they are there.
    let whole = NonZeroUsize::new(64 << 10).unwrap();
    let paths = paths.clone();
    let handler = {
        let paths = paths.clone();
        move |exchange: Exchange| {
            paths.write(exchange.uri().path().to_owned());
            answer(exchange, Vec::new());
        }
    };
    match mode {
        Mode::Service => {
            let service = service_fn(move |request: Request<Body>| {
                paths.write(request.uri().path().to_owned());
                serve(request)
            });
            builder.serve(listener(), service)
        }
        Mode::Inline => builder.handle(listener(), Dispatch::Inline, handler),
        Mode::Pool => {
            let builder = builder.body_buffer(whole);
            builder.handle(listener(), Dispatch::default(), handler)
        }
        Mode::Queue => builder.queue(listener()).map(|(server, queue)| {
            for _ in 0..3 {
                let (queue, handler) = (queue.clone(), handler.clone());
                thread::spawn(move || {
                    while let Ok(taken) = queue.take(1, None) {
                        taken.into_iter().for_each(&handler);
                    }
                });
            }
            server
        }),
    }
    .unwrap()
}

/// The pieces that are written one by one. In the middle of what is long, a piece is not a byte, but hundreds.
fn pieces(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    const EDGE: usize = 500;
    let is_long = bytes.len() > 4 * EDGE;
    let (begin, rest) = bytes.split_at(if is_long { EDGE } else { bytes.len() });
    let (middle, end) = rest.split_at(rest.len().saturating_sub(EDGE));
    begin
        .chunks(1)
        .chain(middle.chunks(997))
        .chain(end.chunks(1))
}

/// Sends the case's bytes, and the request behind them, and reads what comes.
fn run(to: impl Place, case: &Case, delivery: Delivery, behind: &str) -> Outcome {
    let before = "GET /before HTTP/1.1\r\nHost: before\r\n\r\n";
    let mut client = Client::connect(to);
    client.set_read_timeout(PATIENCE);
    let mut outcome = Outcome {
        asked: 0,
        answer: Err(End::Silence),
        then: Then::Ends(End::Silence),
    };
    let last = case.parts.len() - 1;
    // The head of an answer that has come in the place of a 100.
    let mut head = None;
    for (at, part) in case.parts.iter().enumerate() {
        let mut bytes = part.clone();
        if at == last {
            bytes.extend(format!("GET {behind} HTTP/1.1\r\nHost: behind\r\n\r\n").bytes());
        }
        // The server may have closed the connection: then what it has said before tells why.
        let _ = match delivery {
            Delivery::ByteByByte => pieces(&bytes).try_for_each(|piece| client.try_send(piece)),
            Delivery::Pipelined if at == 0 => client.try_send([before.as_bytes(), &bytes].concat()),
            Delivery::Whole | Delivery::Pipelined => client.try_send(&bytes),
        };
        if let (0, Delivery::Pipelined) = (at, delivery) {
            match client.try_answer() {
                Ok(answer) if answer.text().starts_with("GET /before\n") => {}
                result => {
                    outcome.answer = result.map_err(|error| end(&mut client, &error));
                    return outcome;
                }
            }
        }
        if at < last && head.is_none() {
            match client.try_head() {
                Ok(answer) if answer.status == 100 => outcome.asked += 1,
                Ok(answer) => head = Some(answer),
                Err(error) => {
                    outcome.answer = Err(end(&mut client, &error));
                    return outcome;
                }
            }
        }
    }
    let whole = match head {
        None => read(&mut client, &mut outcome.asked),
        Some(head) => {
            let body = client.try_body(&head);
            body.map(|body| Answer { body, ..head })
        }
    };
    outcome.answer = whole.map_err(|error| end(&mut client, &error));
    outcome.then = match client.try_answer() {
        Ok(answer) => {
            let is_next = is_by_handler(&answer)
                && answer.status == 200
                && answer.text() == format!("GET {behind}\nhost: behind\n\n");
            if is_next {
                Then::GoesOn
            } else {
                Then::Answer(answer.status, show(&[answer.body]))
            }
        }
        Err(error) => Then::Ends(end(&mut client, &error)),
    };
    outcome
}

/// The answer, behind those with 100.
fn read(client: &mut Client, asked: &mut usize) -> io::Result<Answer> {
    loop {
        let answer = client.try_answer()?;
        if answer.status != 100 {
            return Ok(answer);
        }
        *asked += 1;
    }
}

/// How it has ended, if reading an answer has failed in this way.
fn end(client: &mut Client, error: &io::Error) -> End {
    match error.kind() {
        ErrorKind::UnexpectedEof => match client.until_end() {
            Ok(rest) if rest.is_empty() => End::Closed,
            Ok(rest) => End::Garbage(rest.escape_ascii().to_string()),
            Err(error) => End::Garbage(error.to_string()),
        },
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => End::Reset,
        ErrorKind::WouldBlock | ErrorKind::TimedOut => End::Silence,
        _ => End::Garbage(error.to_string()),
    }
}

/// Runs all cases against a server of that mode, and returns all failures.
fn run_all(mode: Mode, cases: &[Case]) -> Vec<Failure> {
    let paths = Journal::new();
    let server = server(mode, &paths);
    let to = addr(&server);
    let failure = |case: &Case, delivery: Delivery, why| Failure {
        title: format!("{}:{}: {}", case.file, case.line, case.name),
        how: format!("{mode:?}, {delivery:?} ({})", case.rule),
        expected: case.expected().to_string(),
        why,
        bytes: show(&case.parts),
    };
    let behind = |at: usize, delivery: Delivery| format!("/behind/{at}/{delivery:?}");
    let deliveries = [Delivery::Whole, Delivery::ByteByByte, Delivery::Pipelined];
    let mut failures: Vec<Failure> = thread::scope(|scope| {
        let run = |delivery| {
            let cases = cases.iter().enumerate();
            let outcomes = cases.map(|(at, case)| {
                let outcome = run(to, case, delivery, &behind(at, delivery));
                (case, faults(case, &outcome))
            });
            let failed = outcomes.filter(|(_, why)| !why.is_empty());
            failed
                .map(|(case, why)| failure(case, delivery, why))
                .collect::<Vec<_>>()
        };
        let threads = deliveries.map(|delivery| scope.spawn(move || run(delivery)));
        threads
            .into_iter()
            .flat_map(|it| it.join().unwrap())
            .collect()
    });
    if failures.is_empty() {
        assert_balanced(&stop(&server).unwrap());
    }
    let paths = paths.all();
    for (at, case) in cases.iter().enumerate() {
        for delivery in deliveries {
            if !case.expected().goes_on && paths.contains(&behind(at, delivery)) {
                let why = "a handler was asked for what is behind it".to_owned();
                failures.push(failure(case, delivery, vec![why]));
            }
        }
    }
    assert!(
        !paths.iter().any(|path| path == "/smuggled"),
        "{}",
        report(&failures)
    );
    failures
}

fn check(mode: Mode) {
    let failures = run_all(mode, &corpus());
    assert!(failures.is_empty(), "\n{}", report(&failures));
}

#[test]
fn a_service_gets_what_it_should() {
    check(Mode::Service);
}

#[test]
fn a_handler_in_place_gets_what_it_should() {
    check(Mode::Inline);
}

#[test]
fn a_handler_in_the_pool_gets_what_it_should() {
    check(Mode::Pool);
}

#[test]
fn a_handler_with_a_queue_gets_what_it_should() {
    check(Mode::Queue);
}

#[test]
fn there_are_ten_cases_of_each_class_and_each_has_a_name_of_its_own() {
    let cases = corpus();
    let mut classes = std::collections::BTreeMap::<&str, Vec<&str>>::new();
    for case in &cases {
        let names = classes.entry(&case.file).or_default();
        let title = format!("{}:{}: {}", case.file, case.line, case.name);
        assert!(!names.contains(&case.name.as_str()), "{title}: twice");
        names.push(&case.name);
    }
    if std::env::var_os("HTTPDOWN_CORPUS").is_none() {
        assert_eq!(classes.len(), 9);
        for (file, names) in classes {
            assert!(names.len() >= 10, "{file}: {}", names.len());
        }
    }
}

/// A failure names the case, the mode and the bytes, and no failure hides another.
#[test]
fn a_report_says_what_has_failed() {
    let text = r"
case: one
rule: RFC 9112, 3
> GET / HTTP/1.1\r\nHost: a\r\n\r\n
verdict: accept 200, closes
sees: POST /
field: x: y
body: a

case: two
rule: RFC 9112, 3
> GET /\{3:ab} HTTP/1.1\r\nHost: a\r\n\r\n
verdict: refuse 400
known: refuse 431 because it is a test
";
    let cases = parse("test.txt", text).unwrap();
    let text = report(&run_all(Mode::Inline, &cases));
    for expected in [
        "test.txt:2: one\n  Inline, Whole (RFC 9112, 3); expected: accept 200, closes\n",
        "\n    the handler sees GET /\n    the handler does not see x: y, but host: a\n    the body is \n",
        "\n    it goes on\n",
        "\n  the bytes: GET / HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n\n",
        "one\n  Inline, ByteByByte (RFC",
        "two\n  Inline, Pipelined (RFC 9112, 3); expected: refuse 431\n",
        "known because it is a test; right would be: refuse 400\n",
        "GET /ababab HTTP/1.1",
        "one\n  Inline, Pipelined (RFC",
    ] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
}

#[test]
fn a_file_with_a_mistake_says_where() {
    let whole = "case: a\nrule: RFC 9112, 3\n> x\nverdict: refuse 400\n";
    assert_eq!(parse("f", whole).unwrap().len(), 1);
    for (text, expected) in [
        ("> x", "f:1: there is no case: > x"),
        (&[whole, "> \\q"].concat(), "f:5: unknown escape: > \\q"),
        (&[whole, "wait: 1"].concat(), "f:5: unknown key: wait: 1"),
        (
            &[whole, "known: close"].concat(),
            "f:5: no reason: known: close",
        ),
        (
            &whole.replace("400", "it"),
            "f:4: unknown verdict: verdict: refuse it",
        ),
        (&whole.replace("> x\n", ""), "f:1: a: lacks bytes"),
        (
            &whole.replace("9112", "1"),
            "f:1: a: lacks a rule (RFC 9110 or RFC 9112, and the section)",
        ),
        (
            &whole.replace("refuse 400", "accept 200, closes"),
            "f:1: a: lacks what the handler sees (sees:)",
        ),
    ] {
        assert_eq!(parse("f", text).unwrap_err(), expected);
    }
}
