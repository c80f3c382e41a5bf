//! Answers that are files, or parts of files.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a helper that fails fails its test"
)]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use httpdate::fmt_http_date;
use httpdown::{Builder, Dispatch, Error, Exchange, Phase, Server};

use common::{
    Answer, Client, Journal, addr, assert_balanced, builder, each_way, listener, stop,
    stop_elsewhere, wait_for_phase,
};

/// A folder that is removed with this value.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("httpdown-files-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A file that has been there for a while.
    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        changed(&path, SystemTime::now() - Duration::from_secs(3_600));
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn changed(path: &Path, at: SystemTime) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_modified(at).unwrap();
}

/// Bytes that differ from place to place.
fn bytes(count: usize) -> Vec<u8> {
    let numbers =
        (0..count.div_ceil(8)).map(|number| (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut bytes: Vec<u8> = numbers.flat_map(u64::to_le_bytes).collect();
    bytes.truncate(count);
    bytes
}

fn open(path: impl AsRef<Path>) -> File {
    File::open(path).unwrap()
}

fn ok() -> Response<()> {
    Response::new(())
}

fn get(server: &Server, path: &str, fields: &str) -> Answer {
    ask(server, "GET", path, fields)
}

/// A request on a connection of its own, on which it is sent a second time.
fn ask(server: &Server, method: &str, path: &str, fields: &str) -> Answer {
    let mut client = Client::connect(addr(server));
    let mut again = || {
        client.send(format!(
            "{method} {path} HTTP/1.1\r\nHost: test\r\n{fields}\r\n"
        ));
        let mut answer = client.try_head().unwrap();
        if method != "HEAD" && answer.status != 304 {
            answer.body = client.try_body(&answer).unwrap();
        }
        answer
    };
    let answer = again();
    assert_eq!(again().status, answer.status);
    answer
}

fn length(answer: &Answer) -> u64 {
    answer.header("content-length").unwrap().parse().unwrap()
}

fn in_place(builder: Builder, handler: impl Fn(Exchange) + Send + Sync + 'static) -> Server {
    let dispatch = Dispatch::Inline;
    builder.handle(listener(), dispatch, handler).unwrap()
}

#[test]
fn bytes_of_an_open_file_are_sent_however_requests_are_answered() {
    let folder = Folder::new();
    let content = bytes(300_000);
    let path = folder.file("a", &content);
    let handler = move |exchange: Exchange| {
        let file = open(&path);
        match exchange.uri().path() {
            "/all" => exchange.reply_fd(ok(), file, ..),
            "/part" => exchange.reply_fd(ok(), file, 1..=100_000),
            "/rest" => exchange.reply_fd(ok(), file, 200_000..),
            "/none" => exchange.reply_fd(ok(), file, 300_000..),
            "/declared" => {
                let head = Response::builder()
                    .header("content-length", "5")
                    .status(299);
                exchange.reply_fd(head.body(()).unwrap(), file, 10..15)
            }
            "/204" => {
                let head = Response::builder().status(204).body(()).unwrap();
                exchange.reply_fd(head, file, ..)
            }
            other => panic!("{other}"),
        }
        .unwrap();
    };
    for server in each_way(builder, handler) {
        for (path, status, part) in [
            ("/all", 200, &content[..]),
            ("/part", 200, &content[1..=100_000]),
            ("/rest", 200, &content[200_000..]),
            ("/none", 200, &[]),
            ("/declared", 299, &content[10..15]),
        ] {
            let answer = get(&server, path, "");
            assert_eq!(answer.status, status, "{path}");
            assert!(answer.body == part, "{path}");
            assert_eq!(length(&answer), part.len() as u64, "{path}");
            let head = ask(&server, "HEAD", path, "");
            assert_eq!(length(&head), part.len() as u64, "{path}");
        }
        let mut client = Client::get(addr(&server), "/204");
        assert_eq!(client.answer().status, 204);
        let report = stop(&server).unwrap();
        assert_balanced(&report);
        assert_eq!(report.served, report.requests, "{report:?}");
    }
}

#[test]
fn what_the_kernel_has_not_in_its_memory_is_read_too() {
    let folder = Folder::new();
    let content = bytes(3_000_000);
    let path = folder.file("a", &content);
    // Some file systems read nothing without waiting (memfd_create), and a new file's pages can be thrown away.
    let in_memory = || {
        let mut file = File::from(file_in_memory());
        file.write_all(&content).unwrap();
        OwnedFd::from(file)
    };
    let on_disk = || {
        let file = open(&path);
        file.sync_all().unwrap();
        forget_pages(&file);
        OwnedFd::from(file)
    };
    let sources: [&dyn Fn() -> OwnedFd; 2] = [&in_memory, &on_disk];
    for source in sources {
        let files = Mutex::new(Vec::from([source(), source()]));
        let server = in_place(builder(), move |exchange: Exchange| {
            let file = files.lock().unwrap().pop().unwrap();
            exchange.reply_fd(ok(), file, ..).unwrap();
        });
        let answer = get(&server, "/", "");
        assert!(answer.body == content);
        assert_balanced(&stop(&server).unwrap());
    }
}

#[allow(unsafe_code, reason = "std does not offer it")]
fn file_in_memory() -> OwnedFd {
    use std::os::fd::FromRawFd;
    // SAFETY: the name is NUL-terminated; the new descriptor is nobody else's.
    unsafe {
        let fd = libc::memfd_create(c"files".as_ptr(), libc::MFD_CLOEXEC);
        assert!(fd >= 0);
        OwnedFd::from_raw_fd(fd)
    }
}

#[allow(unsafe_code, reason = "std does not offer it")]
fn forget_pages(file: &File) {
    use std::os::fd::AsRawFd;
    // SAFETY: no pointers.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
}

#[test]
fn a_descriptor_that_cannot_be_sent_is_refused() {
    let folder = Folder::new();
    let path = folder.file("a", "content");
    let lines = Journal::new();
    let (written, said) = (lines.clone(), Journal::new());
    let heard = said.clone();
    let builder = builder().on_log(move |_, line: &str| written.write(line.to_owned()));
    let server = in_place(builder, move |exchange: Exchange| {
        let (reader, _writer) = io::pipe().unwrap();
        let appending = OpenOptions::new().append(true).open(&path).unwrap();
        let named = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH)
            .open(&path)
            .unwrap();
        let folder = open(path.parent().unwrap());
        let wrong_length = Response::builder()
            .header("content-length", "6")
            .body(())
            .unwrap();
        let result = match exchange.uri().path() {
            "/pipe" => exchange.reply_fd(ok(), reader, ..),
            "/folder" => exchange.reply_fd(ok(), folder, ..),
            "/appending" => exchange.reply_fd(ok(), appending, ..),
            "/path" => exchange.reply_fd(ok(), named, ..),
            "/behind" => exchange.reply_fd(ok(), open(&path), 8..),
            "/too-long" => exchange.reply_fd(ok(), open(&path), 0..8),
            #[allow(clippy::reversed_empty_ranges, reason = "it is wrong")]
            "/backwards" => exchange.reply_fd(ok(), open(&path), 3..2),
            "/wrong-length" => exchange.reply_fd(wrong_length, open(&path), ..),
            "/open-pipe" => exchange.reply_open_file(reader, HeaderMap::new()),
            "/ranged" => exchange.reply_file(&path, fields(&[("content-range", "bytes 0-1/2")])),
            "/tag" => exchange.reply_file(&path, fields(&[("etag", "abc")])),
            "/date" => exchange.reply_file(&path, fields(&[("last-modified", "today")])),
            "/nul" => exchange.reply_file("a\0b", HeaderMap::new()),
            other => panic!("{other}"),
        };
        assert!(
            matches!(result, Err(Error::InvalidArgument(_))),
            "{result:?}"
        );
        heard.write(());
    });
    let paths = [
        "/pipe",
        "/folder",
        "/appending",
        "/path",
        "/behind",
        "/too-long",
        "/backwards",
        "/wrong-length",
        "/open-pipe",
        "/ranged",
        "/tag",
        "/date",
        "/nul",
    ];
    for path in paths {
        assert_eq!(
            Client::get(addr(&server), path).answer().status,
            500,
            "{path}"
        );
    }
    assert_balanced(&stop(&server).unwrap());
    assert_eq!(said.all().len(), paths.len());
    for path in paths {
        let refused = format!("the answer to {path} was refused");
        lines.wait_for(|line| line.contains(&refused));
    }
}

fn fields(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    let pair = |(name, value): &(&'static str, &'static str)| {
        (
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        )
    };
    fields.iter().map(pair).collect()
}

/// Sends the files of a folder, by their names.
fn site(folder: &Folder) -> impl Fn(Exchange) + Clone + Send + Sync + 'static {
    let root = folder.0.clone();
    move |exchange: Exchange| {
        let path = root.join(&exchange.uri().path()[1..]);
        let fields = fields(&[("cache-control", "max-age=5"), ("content-language", "en")]);
        let _ = exchange.reply_file(path, fields);
    }
}

#[test]
fn a_file_is_sent_with_what_is_known_of_it() {
    let folder = Folder::new();
    let path = folder.file("a.html", "<p>hello");
    folder.file("empty", "");
    for server in each_way(builder, site(&folder)) {
        for method in ["GET", "HEAD"] {
            let answer = ask(&server, method, "/a.html", "");
            assert_eq!(answer.status, 200);
            assert_eq!(length(&answer), 8);
            let changed = fmt_http_date(fs::metadata(&path).unwrap().modified().unwrap());
            assert_eq!(
                answer.header("last-modified"),
                Some(&*changed.to_lowercase())
            );
            assert_eq!(
                answer.header("content-type"),
                Some("text/html; charset=utf-8")
            );
            assert_eq!(answer.header("accept-ranges"), Some("bytes"));
            assert_eq!(answer.header("cache-control"), Some("max-age=5"));
            assert!(
                answer.header("etag").unwrap().starts_with('"'),
                "{answer:?}"
            );
        }
        assert_eq!(get(&server, "/a.html", "").text(), "<p>hello");
        let empty = get(&server, "/empty", "Range: bytes=0-0\r\n");
        assert_eq!((empty.status, length(&empty)), (200, 0));
        assert_eq!(
            empty.header("content-type"),
            Some("application/octet-stream")
        );
        assert_balanced(&stop(&server).unwrap());
    }
}

#[test]
fn what_is_no_file_is_not_found_and_what_is_not_ours_is_forbidden() {
    let folder = Folder::new();
    folder.file("a", "a");
    let secret = folder.file("secret", "a");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o0)).unwrap();
    fs::create_dir(folder.path("folder")).unwrap();
    symlink("loop", folder.path("loop")).unwrap();
    symlink("a", folder.path("link")).unwrap();
    std::os::unix::net::UnixListener::bind(folder.path("socket")).unwrap();
    let fifo = std::process::Command::new("mkfifo")
        .arg(folder.path("fifo"))
        .status();
    assert!(fifo.unwrap().success());
    let server = in_place(builder(), site(&folder));
    let too_long = format!("/{}", "x".repeat(300));
    for (path, status) in [
        ("/link", 200),
        ("/absent", 404),
        ("/absent/a", 404),
        ("/a/b", 404),
        ("/folder", 404),
        ("/fifo", 404),
        ("/socket", 404),
        ("/loop", 404),
        (&too_long, 404),
    ] {
        assert_eq!(get(&server, path, "").status, status, "{path}");
    }
    // Root may read everything.
    let expected = if File::open(&secret).is_ok() {
        200
    } else {
        403
    };
    assert_eq!(get(&server, "/secret", "").status, expected);
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let answer = ask(&server, method, "/a", "Content-Length: 0\r\n");
        assert_eq!(answer.status, 405);
        assert_eq!(answer.header("allow"), Some("get, head"));
    }
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!(report.served, report.requests, "{report:?}");
}

#[test]
fn a_range_is_sent_alone() {
    let folder = Folder::new();
    let content = bytes(200_000);
    folder.file("a", &content);
    for server in each_way(builder, site(&folder)) {
        for (range, status, part, told) in [
            ("0-0", 206, 0..1, "bytes 0-0/200000"),
            ("100-150000", 206, 100..150_001, "bytes 100-150000/200000"),
            (
                "-70000",
                206,
                130_000..200_000,
                "bytes 130000-199999/200000",
            ),
            (
                "199999-",
                206,
                199_999..200_000,
                "bytes 199999-199999/200000",
            ),
            ("0-999999", 206, 0..200_000, "bytes 0-199999/200000"),
            // One of them lies in the file.
            ("5-9, 200000-", 206, 5..10, "bytes 5-9/200000"),
            // Ignored.
            ("0-,0-", 200, 0..200_000, ""),
            ("x", 200, 0..200_000, ""),
        ] {
            let field = format!("Range: bytes={range}\r\n");
            let answer = get(&server, "/a", &field);
            assert_eq!(answer.status, status, "{range}");
            assert!(answer.body == content[part.clone()], "{range}");
            assert_eq!(length(&answer), part.len() as u64);
            assert_eq!(answer.header("content-range").unwrap_or(""), told);
            assert_eq!(
                answer.header("content-type"),
                Some("application/octet-stream")
            );
            let head = ask(&server, "HEAD", "/a", &field);
            assert_eq!((head.status, length(&head)), (200, 200_000));
        }
        let behind = get(&server, "/a", "Range: bytes=200000-\r\n");
        assert_eq!(behind.status, 416);
        assert_eq!(behind.header("content-range"), Some("bytes */200000"));
        assert_eq!(behind.header("cache-control"), None);
        let twice = get(&server, "/a", "Range: bytes=0-0\r\nRange: bytes=1-1\r\n");
        assert_eq!(twice.status, 200);
        assert_balanced(&stop(&server).unwrap());
    }
}

#[test]
fn several_ranges_are_sent_in_parts() {
    let folder = Folder::new();
    let content = bytes(200_000);
    folder.file("a.png", &content);
    let server = in_place(builder(), site(&folder));
    let ranges = [5..6, 100_000..190_000, 199_998..200_000, 0..1];
    let answer = get(
        &server,
        "/a.png",
        "Range: bytes=5-5,100000-189999,-2,0-0\r\n",
    );
    assert_eq!(answer.status, 206);
    assert_eq!(length(&answer), answer.body.len() as u64);
    assert_eq!(answer.header("content-range"), None);
    let kind = answer.header("content-type").unwrap();
    let boundary = kind
        .strip_prefix("multipart/byteranges; boundary=")
        .unwrap();
    let mut expected = Vec::new();
    for range in ranges {
        let (first, last) = (range.start, range.end - 1);
        let head = format!(
            "\r\n--{boundary}\r\ncontent-type: image/png\r\ncontent-range: bytes {first}-{last}/200000\r\n\r\n"
        );
        expected.extend_from_slice(head.as_bytes());
        expected.extend_from_slice(&content[range]);
    }
    expected.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    assert!(answer.body == expected[2..]);
    let other = get(&server, "/a.png", "Range: bytes=0-0,2-2\r\n");
    assert_ne!(other.header("content-type"), Some(kind));
    assert_balanced(&stop(&server).unwrap());
}

#[test]
fn a_client_that_has_the_file_is_told_so() {
    let folder = Folder::new();
    let path = folder.file("a.txt", "hello");
    let server = in_place(builder(), site(&folder));
    let first = get(&server, "/a.txt", "");
    let (tag, date) = (
        first.header("etag").unwrap(),
        fmt_http_date(fs::metadata(&path).unwrap().modified().unwrap()),
    );
    let old = fmt_http_date(SystemTime::now() - Duration::from_secs(10_000));
    for (fields, status) in [
        (format!("If-None-Match: \"x\", {tag}\r\n"), 304),
        (format!("If-None-Match: W/{tag}\r\n"), 304),
        ("If-None-Match: *\r\n".to_owned(), 304),
        ("If-None-Match: \"x\"\r\n".to_owned(), 200),
        (format!("If-Modified-Since: {date}\r\n"), 304),
        (format!("If-Modified-Since: {old}\r\n"), 200),
        (
            format!("If-None-Match: \"x\"\r\nIf-Modified-Since: {date}\r\n"),
            200,
        ),
        (format!("If-Match: {tag}\r\n"), 200),
        ("If-Match: \"x\"\r\n".to_owned(), 412),
        (format!("If-Unmodified-Since: {date}\r\n"), 200),
        (format!("If-Unmodified-Since: {old}\r\n"), 412),
        (format!("If-None-Match: {tag}\r\nRange: bytes=0-0\r\n"), 304),
        (format!("If-Match: {tag}\r\nRange: bytes=0-0\r\n"), 206),
        (format!("If-Range: {tag}\r\nRange: bytes=0-0\r\n"), 206),
        (format!("If-Range: {date}\r\nRange: bytes=0-0\r\n"), 206),
        (format!("If-Range: {old}\r\nRange: bytes=0-0\r\n"), 200),
        ("If-Range: \"x\"\r\nRange: bytes=0-0\r\n".to_owned(), 200),
        ("If-Range: \"x\"\r\nRange: bytes=9-\r\n".to_owned(), 200),
    ] {
        let answer = get(&server, "/a.txt", &fields);
        assert_eq!(answer.status, status, "{fields}");
        if status != 206 {
            let head = ask(&server, "HEAD", "/a.txt", &fields);
            assert_eq!(head.status, status, "{fields}");
        }
        if status == 304 {
            assert_eq!(answer.header("etag"), Some(tag));
            assert_eq!(answer.header("cache-control"), Some("max-age=5"));
            for name in [
                "content-type",
                "content-language",
                "content-length",
                "last-modified",
                "accept-ranges",
            ] {
                assert_eq!(answer.header(name), None, "{name}");
            }
        }
    }
    // Another state of the file, though no byte has changed and it is as long as before.
    changed(&path, SystemTime::now() - Duration::from_secs(3_000));
    let changed = get(&server, "/a.txt", &format!("If-None-Match: {tag}\r\n"));
    assert_eq!(changed.status, 200);
    // One that has just been changed may change again in the same moment.
    fs::write(&path, "hallo").unwrap();
    let fresh = get(
        &server,
        "/a.txt",
        &format!("If-Range: {tag}\r\nRange: bytes=0-0\r\n"),
    );
    assert_eq!(fresh.status, 200);
    assert!(
        fresh.header("etag").unwrap().starts_with("w/\""),
        "{fresh:?}"
    );
    assert_balanced(&stop(&server).unwrap());
}

#[test]
fn the_handlers_own_fields_come_first() {
    let folder = Folder::new();
    let path = folder.file("a.txt", "hello");
    let server = in_place(builder(), move |exchange: Exchange| {
        let own = fields(&[
            ("etag", "\"mine\""),
            ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT"),
            ("content-type", "text/x-mine"),
            ("accept-ranges", "none"),
        ]);
        let _ = match exchange.uri().path() {
            "/open" => exchange.reply_open_file(open(&path), HeaderMap::new()),
            "/own" => exchange.reply_open_file(open(&path), own),
            _ => exchange.reply_file(&path, own),
        };
    });
    for path in ["/", "/own"] {
        let answer = get(&server, path, "");
        for (name, value) in [
            ("etag", "\"mine\""),
            ("last-modified", "sun, 06 nov 1994 08:49:37 gmt"),
            ("content-type", "text/x-mine"),
            ("accept-ranges", "none"),
        ] {
            assert_eq!(answer.header(name), Some(value));
        }
        for (fields, status) in [
            ("If-None-Match: \"mine\"\r\n", 304),
            ("If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT\r\n", 304),
            ("If-Modified-Since: Sunday, 06-Nov-94 08:49:36 GMT\r\n", 200),
            (
                "If-Range: Sun, 06 Nov 1994 08:49:37 GMT\r\nRange: bytes=0-0\r\n",
                206,
            ),
        ] {
            assert_eq!(get(&server, path, fields).status, status, "{fields}");
        }
    }
    assert_eq!(get(&server, "/open", "").header("content-type"), None);
    let part = get(&server, "/open", "Range: bytes=0-0,2-2\r\n");
    assert!(!part.text().contains("content-type"), "{part:?}");
    assert_eq!(
        ask(&server, "PATCH", "/open", "Content-Length: 0\r\n").status,
        405
    );
    assert_balanced(&stop(&server).unwrap());
}

#[test]
fn pipelined_files_come_in_their_order() {
    let folder = Folder::new();
    let (long, short) = (bytes(500_000), bytes(100));
    folder.file("long", &long);
    folder.file("short", &short);
    for server in each_way(builder, site(&folder)) {
        let order: Vec<_> = (0..40).map(|turn| turn % 5 == 3).collect();
        let mut client = Client::connect(addr(&server));
        for is_long in &order {
            client.ask(if *is_long { "/long" } else { "/short" });
        }
        for is_long in order {
            let expected = if is_long { &long } else { &short };
            assert!(client.answer().body == *expected);
        }
        assert_balanced(&stop(&server).unwrap());
    }
}

#[test]
fn files_are_sent_on_the_hosts_runtime() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let folder = Folder::new();
    let path = long_file(&folder);
    let content = bytes(3_000_000);
    fs::write(&path, &content).unwrap();
    forget_pages(&open(&path));
    let on_theirs = || builder().runtime(runtime.handle().clone());
    for server in each_way(on_theirs, site(&folder)) {
        assert!(get(&server, "/long", "").body == content);
        assert_balanced(&stop(&server).unwrap());
    }
}

/// More than the kernel takes for a client that reads nothing.
const LONG_FILE: u64 = 16 << 20;

fn long_file(folder: &Folder) -> PathBuf {
    let path = folder.file("long", "");
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(LONG_FILE).unwrap();
    path
}

#[test]
fn a_file_that_becomes_shorter_cuts_the_answer() {
    let folder = Folder::new();
    let path = long_file(&folder);
    let (lines, sums) = (Journal::new(), Journal::new());
    let (written, counted) = (lines.clone(), sums.clone());
    let builder = builder()
        .stats(Sums(counted))
        .on_log(move |_, line: &str| written.write(line.to_owned()));
    let server = in_place(builder, site(&folder));
    let mut client = Client::get(addr(&server), "/long");
    let head = client.try_head().unwrap();
    assert_eq!((head.status, length(&head)), (200, LONG_FILE));
    OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(10)
        .unwrap();
    assert!(client.try_body(&head).is_err());
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.failed, report.served), (1, 0), "{report:?}");
    lines
        .wait_for(|line| line.contains("the answer to /long was cut: its file has become shorter"));
    sums.wait_for(|key| key == "file.error");
}

struct Sums(Journal<String>);

impl httpdown::Stats for Sums {
    fn bump_sum(&mut self, key: &str, _: f64) {
        self.0.write(key.to_owned());
    }
}

#[test]
fn a_file_that_grows_is_sent_as_it_was() {
    let folder = Folder::new();
    let path = long_file(&folder);
    let server = in_place(builder(), site(&folder));
    let mut client = Client::get(addr(&server), "/long");
    let head = client.try_head().unwrap();
    OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(LONG_FILE + 10)
        .unwrap();
    assert_eq!(client.try_body(&head).unwrap().len() as u64, LONG_FILE);
    client.ask("/absent");
    assert_eq!(client.answer().status, 404);
    assert_balanced(&stop(&server).unwrap());
}

#[test]
fn a_stop_lets_a_file_come_to_its_end() {
    let folder = Folder::new();
    long_file(&folder);
    for server in each_way(builder, site(&folder)) {
        let mut clients: Vec<_> = (0..2)
            .map(|_| Client::get(addr(&server), "/long"))
            .collect();
        let heads: Vec<_> = clients
            .iter_mut()
            .map(|client| client.try_head().unwrap())
            .collect();
        let stopping = stop_elsewhere(&server);
        wait_for_phase(&server, Phase::Draining);
        for (client, head) in clients.iter_mut().zip(&heads) {
            assert_eq!(client.try_body(head).unwrap().len() as u64, LONG_FILE);
        }
        let report = stopping.join().unwrap().unwrap();
        assert_balanced(&report);
        assert_eq!((report.served, report.killed), (2, 0), "{report:?}");
    }
}

#[test]
fn a_kill_cuts_a_file() {
    let folder = Folder::new();
    long_file(&folder);
    let server = in_place(builder(), site(&folder));
    let mut client = Client::get(addr(&server), "/long");
    let head = client.try_head().unwrap();
    server.kill_begin();
    assert!(client.try_body(&head).is_err());
    let result = common::wait(&server);
    assert!(matches!(result, Err(Error::Killed(_))), "{result:?}");
    assert_balanced(&server.report());
}

#[test]
fn a_client_that_leaves_counts_as_gone() {
    let folder = Folder::new();
    long_file(&folder);
    let server = in_place(builder(), site(&folder));
    let mut client = Client::get(addr(&server), "/long");
    assert_eq!(client.try_head().unwrap().status, StatusCode::OK);
    client.reset();
    let report = stop(&server).unwrap();
    assert_balanced(&report);
    assert_eq!((report.gone, report.failed), (1, 0), "{report:?}");
}
