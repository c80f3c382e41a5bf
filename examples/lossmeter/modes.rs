//! The ways in which clients use their connections, and the requests that they send.

use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;

/// A way to use connections. All that a client does differently in one mode than in another is said here.
#[derive(Debug)]
pub(crate) struct Mode {
    pub(crate) name: &'static str,
    /// For `--help`.
    pub(crate) about: &'static str,
    /// How likely a connection is used again, in percent.
    pub(crate) reuse: u8,
    /// At most so long between two requests.
    pub(crate) think: Think,
    /// So many milliseconds between connecting and the first request.
    pub(crate) silence: RangeInclusive<u64>,
    /// How a request is cut for sending.
    cut: Cut,
    /// So many requests are sent at once.
    depth: RangeInclusive<usize>,
    upload: Upload,
    /// Which of the paths is asked for.
    target: Target,
    /// The answer is read a bit at a time.
    pub(crate) reads_slowly: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Think {
    Not,
    /// What `--think` says.
    AsAsked,
    AtMost(Duration),
}

#[derive(Clone, Copy, Debug)]
enum Cut {
    Not,
    /// In three, within the head.
    Pieces,
    Bytes,
}

#[derive(Clone, Copy, Debug)]
enum Upload {
    None,
    Small,
    Large,
}

#[derive(Clone, Copy, Debug)]
enum Target {
    Get,
    Post,
    Upload,
    Big,
}

const PLAIN: Mode = Mode {
    name: "",
    about: "",
    reuse: 100,
    think: Think::Not,
    silence: 0..=0,
    cut: Cut::Not,
    depth: 1..=1,
    upload: Upload::None,
    target: Target::Get,
    reads_slowly: false,
};

const SHORT: Think = Think::AtMost(Duration::from_millis(50));

/// All there are, in the order in which they run.
pub(crate) static MODES: [Mode; 10] = [
    Mode {
        name: "new",
        about: "a new connection for each request",
        reuse: 0,
        ..PLAIN
    },
    Mode {
        name: "silent",
        about: "the same, but the request comes 20 to 500 ms after the connection",
        reuse: 0,
        silence: 20..=500,
        ..PLAIN
    },
    Mode {
        name: "busy",
        about: "connections used again and again, at once",
        ..PLAIN
    },
    Mode {
        name: "keepalive",
        about: "connections used again after a pause, up to --think",
        think: Think::AsAsked,
        ..PLAIN
    },
    Mode {
        name: "pieces",
        about: "heads in three pieces, up to 100 ms apart, on new connections and on used ones",
        reuse: 50,
        think: SHORT,
        cut: Cut::Pieces,
        ..PLAIN
    },
    Mode {
        name: "slow",
        about: "heads a byte at a time, on new connections and on used ones",
        reuse: 50,
        think: SHORT,
        cut: Cut::Bytes,
        ..PLAIN
    },
    Mode {
        name: "pipelined",
        about: "2 to 16 requests at once, in one segment",
        think: SHORT,
        depth: 2..=16,
        ..PLAIN
    },
    Mode {
        name: "post",
        about: "small bodies (--post-path)",
        think: SHORT,
        upload: Upload::Small,
        target: Target::Post,
        ..PLAIN
    },
    Mode {
        name: "upload",
        about: "large bodies, with Content-Length and chunked (--upload-path, --upload-size)",
        think: SHORT,
        upload: Upload::Large,
        target: Target::Upload,
        ..PLAIN
    },
    Mode {
        name: "download",
        about: "large answers, read slowly (--big-path)",
        think: SHORT,
        target: Target::Big,
        reads_slowly: true,
        ..PLAIN
    },
];

/// What the paths and sizes are that modes ask for.
#[derive(Clone, Debug)]
pub(crate) struct Targets {
    pub(crate) get: String,
    pub(crate) post: String,
    pub(crate) upload: String,
    pub(crate) big: String,
    /// Bytes of a large body.
    pub(crate) upload_size: usize,
}

/// A mode's requests, ready to be sent to a certain server.
#[derive(Debug)]
pub(crate) struct Requests {
    mode: &'static Mode,
    /// One request, in each form that it has.
    forms: Vec<Form>,
    /// For `--no-stop` and messages: what is asked for.
    pub(crate) line: String,
}

#[derive(Debug)]
struct Form {
    /// As often as it can be pipelined.
    bytes: Bytes,
    head: usize,
    /// Of one.
    len: usize,
}

/// What is written at once, or with pauses.
#[derive(Debug)]
pub(crate) struct Script {
    pub(crate) bytes: Bytes,
    /// How many requests these are.
    pub(crate) count: usize,
    /// Where to pause, and for how long.
    pub(crate) pauses: Vec<(usize, Duration)>,
}

impl Requests {
    pub(crate) fn new(mode: &'static Mode, targets: &Targets, host: &str) -> Self {
        let path = match mode.target {
            Target::Get => &targets.get,
            Target::Post => &targets.post,
            Target::Upload => &targets.upload,
            Target::Big => &targets.big,
        };
        let size = match mode.upload {
            Upload::None => 0,
            Upload::Small => 100,
            Upload::Large => targets.upload_size,
        };
        let method = if let Upload::None = mode.upload {
            "GET"
        } else {
            "POST"
        };
        let line = format!("{method} {path}");
        let head = |field: &str| {
            format!("{line} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: lossmeter\r\n{field}\r\n")
        };
        // The same bytes in each run: what comes back is compared with them, by way of the first answer.
        let mut body = vec![0; size];
        Rng::with_seed(size as u64).fill(&mut body);
        let forms = match mode.upload {
            Upload::None => vec![Form::new(&head(""), &[], *mode.depth.end())],
            Upload::Small | Upload::Large => vec![
                Form::new(&head(&format!("Content-Length: {size}\r\n")), &body, 1),
                Form::new(&head("Transfer-Encoding: chunked\r\n"), &chunked(&body), 1),
            ],
        };
        Self { mode, forms, line }
    }

    /// The plainest of them.
    pub(crate) fn first(&self) -> Script {
        Script {
            bytes: self.forms[0].bytes.slice(..self.forms[0].len),
            count: 1,
            pauses: Vec::new(),
        }
    }

    /// One of them, by chance.
    pub(crate) fn any(&self, random: &mut Rng) -> Script {
        let form = &self.forms[random.usize(..self.forms.len())];
        let count = random.usize(self.mode.depth.clone());
        let pauses = match self.mode.cut {
            Cut::Not => Vec::new(),
            Cut::Pieces => {
                let first = random.usize(1..form.head - 1);
                let second = random.usize(first + 1..form.head);
                let mut pause = || Duration::from_millis(random.u64(0..=100));
                vec![(first, pause()), (second, pause())]
            }
            Cut::Bytes => {
                let pause = Duration::from_micros(random.u64(500..=5_000));
                (1..form.len).map(|at| (at, pause)).collect()
            }
        };
        Script {
            bytes: form.bytes.slice(..form.len * count),
            count,
            pauses,
        }
    }
}

impl Form {
    fn new(head: &str, body: &[u8], depth: usize) -> Self {
        let one = [head.as_bytes(), body].concat();
        Self {
            head: head.len(),
            len: one.len(),
            bytes: one.repeat(depth).into(),
        }
    }
}

fn chunked(body: &[u8]) -> Vec<u8> {
    let mut coded = Vec::new();
    for chunk in body.chunks(32 << 10) {
        coded.extend(format!("{:x}\r\n", chunk.len()).bytes());
        coded.extend(chunk);
        coded.extend(b"\r\n");
    }
    coded.extend(b"0\r\n\r\n");
    coded
}
