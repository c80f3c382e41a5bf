//! What two generations of a program say to each other at a restart, over a pair of sockets (ADR 0029).
//!
//! A message is a text: the first line says its kind, and further lines are keys with values. Keys that a version of
//! this library does not know are skipped. So two versions can follow each other.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;
use std::str::FromStr;

use nix::sys::socket::{Shutdown, shutdown};
use percent_encoding::{
    AsciiSet, CONTROLS, percent_decode_str, percent_encode, utf8_percent_encode,
};

use crate::sys::{seqpacket, wipe};

/// The variable that names the socket: its number, and the process for which it is.
pub(crate) const VARIABLE: &str = "HTTPDOWN_RESTART";
/// The version of the messages.
const VERSION: u32 = 1;
/// The longest message. The kernel takes no more by default (`net.core.wmem_default`).
const LONGEST: usize = 212_992;

/// What would end a value.
const SPECIAL: &AsciiSet = &CONTROLS.add(b' ').add(b'%').add(b'=');

/// A message. The first five go to the new process, the others come from it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Hello(Hello),
    /// Clients may be accepted.
    Accept,
    /// Answer this number.
    Ping(u64),
    /// The sockets are the new process's.
    Go,
    /// Leave the sockets, and stop.
    Stop,
    /// Something has failed; there may be another try.
    Note(String),
    /// The descriptor that comes with this shows what it holds (holdings.rs).
    Holds,
    /// Why it is not ready yet.
    Waits(String),
    /// All is served, but for these sockets, which are closed.
    Ready(Vec<usize>),
    Failed(String),
    /// The answer to this number.
    Pong(u64),
    /// The sockets are left.
    Left,
    /// A kind that this version does not know.
    Unknown,
}

/// What the new process must know before it listens.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Hello {
    /// How many restarts there have been.
    pub(crate) generation: u64,
    /// The processes that may still drain; the one that says this is the first.
    pub(crate) predecessors: Vec<u32>,
    /// Inherited sockets that nobody claims are closed.
    pub(crate) drop_unclaimed: bool,
    /// Where the new process's ID belongs, if its predecessor dies before it has written it there. Absolute.
    pub(crate) pid_file: Option<PathBuf>,
    pub(crate) sockets: Vec<Passed>,
}

/// What is known of a socket that is passed on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Passed {
    /// The text by which it was asked for.
    pub(crate) asked: Option<String>,
    /// The new process must serve it.
    pub(crate) is_needed: bool,
    /// It was declared shared.
    pub(crate) is_declared: bool,
    pub(crate) file: Option<File>,
    /// The keys of TLS session tickets.
    pub(crate) tickets: Option<String>,
}

/// The file of a Unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    /// Absolute.
    pub(crate) path: String,
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

/// One end of the pair.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

impl Channel {
    /// Makes a pair: our end, and that of the new process.
    pub(crate) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = seqpacket::pair()?;
        Ok((Self(ours), theirs))
    }

    pub(crate) fn of(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Never blocks.
    ///
    /// # Errors
    /// The other end is gone, or does not read.
    pub(crate) fn send(&self, message: &Message) -> io::Result<()> {
        self.send_with(message, &[])
    }

    /// Sends descriptors, too.
    pub(crate) fn send_with(&self, message: &Message, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut text = message.to_text().into_bytes();
        let sent = seqpacket::send(self.0.as_fd(), &text, fds);
        wipe(&mut text);
        sent
    }

    /// Nothing more will be said, from either side.
    pub(crate) fn end(&self) {
        let _ = shutdown(self.0.as_raw_fd(), Shutdown::Both);
    }

    /// The next message, and the descriptors that came with it. `None` at the end.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if there is none yet; [`io::ErrorKind::InvalidData`] if it cannot be understood.
    pub(crate) fn receive(&self) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
        // Most messages are short. Nobody else receives meanwhile.
        let length = seqpacket::next_length(self.0.as_fd())?;
        let mut buffer = vec![0; length.min(LONGEST)];
        let received = match seqpacket::receive(self.0.as_fd(), &mut buffer) {
            Ok(Some((bytes, fds))) => {
                let parsed = Message::parse(bytes);
                let invalid = |why| io::Error::new(io::ErrorKind::InvalidData, why);
                parsed.map(|message| Some((message, fds))).map_err(invalid)
            }
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        wipe(&mut buffer);
        received
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Message {
    fn to_text(&self) -> String {
        match self {
            Self::Hello(hello) => hello.to_text(),
            Self::Accept => "ACCEPT".into(),
            Self::Ping(number) => format!("PING {number}"),
            Self::Go => "GO".into(),
            Self::Stop => "STOP".into(),
            Self::Note(text) => format!("NOTE {text}"),
            Self::Holds => "HOLDS".into(),
            Self::Waits(why) => format!("WAITS {why}"),
            Self::Ready(dropped) => dropped.iter().fold("READY".into(), |mut text, at| {
                let _ = write!(text, "\ndropped={at}");
                text
            }),
            Self::Failed(text) => format!("FAILED {text}"),
            Self::Pong(number) => format!("PONG {number}"),
            Self::Left => "LEFT".into(),
            Self::Unknown => "UNKNOWN".into(),
        }
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let text = String::from_utf8_lossy(bytes);
        let (kind, rest) = text.split_once([' ', '\n']).unwrap_or((&text, ""));
        let free = || rest.to_owned();
        let first = rest.lines().next().unwrap_or("");
        Ok(match kind {
            "HELLO" => Self::Hello(Hello::parse(rest)?),
            "ACCEPT" => Self::Accept,
            "PING" => Self::Ping(number(first)?),
            "GO" => Self::Go,
            "STOP" => Self::Stop,
            "NOTE" => Self::Note(free()),
            "HOLDS" => Self::Holds,
            "WAITS" => Self::Waits(free()),
            "READY" => {
                let dropped = rest
                    .lines()
                    .filter_map(|line| line.strip_prefix("dropped="));
                Self::Ready(dropped.map(number).collect::<Result<_, _>>()?)
            }
            "FAILED" => Self::Failed(free()),
            "PONG" => Self::Pong(number(first)?),
            "LEFT" => Self::Left,
            _ => Self::Unknown,
        })
    }
}

impl Hello {
    fn to_text(&self) -> String {
        let mut text = format!("HELLO {VERSION}\ngeneration={}", self.generation);
        for pid in &self.predecessors {
            let _ = write!(text, "\npredecessor={pid}");
        }
        if self.drop_unclaimed {
            text.push_str("\ndrop_unclaimed");
        }
        if let Some(file) = &self.pid_file {
            let file = percent_encode(file.as_os_str().as_bytes(), SPECIAL);
            let _ = write!(text, "\npid_file={file}");
        }
        for socket in &self.sockets {
            text.push_str("\nsocket");
            if let Some(asked) = &socket.asked {
                let _ = write!(text, " asked={}", utf8_percent_encode(asked, SPECIAL));
            }
            for (flag, is_set) in [
                (" needed", socket.is_needed),
                (" declared", socket.is_declared),
            ] {
                text.push_str(if is_set { flag } else { "" });
            }
            if let Some(File {
                path,
                device,
                inode,
            }) = &socket.file
            {
                let path = utf8_percent_encode(path, SPECIAL);
                let _ = write!(text, " file={device}:{inode}:{path}");
            }
            if let Some(keys) = &socket.tickets {
                let _ = write!(text, " tickets={keys}");
            }
        }
        text
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut lines = text.lines();
        let version: u32 = number(lines.next().unwrap_or(""))?;
        if version != VERSION {
            return Err(format!(
                "the predecessor's library speaks version {version} of the restart, and this one speaks {VERSION}"
            ));
        }
        let mut hello = Self::default();
        for line in lines {
            match line.split_once(['=', ' ']).unwrap_or((line, "")) {
                ("generation", value) => hello.generation = number(value)?,
                ("predecessor", value) => hello.predecessors.push(number(value)?),
                ("drop_unclaimed", _) => hello.drop_unclaimed = true,
                ("pid_file", value) => {
                    let bytes = percent_decode_str(value).collect();
                    hello.pid_file = Some(OsString::from_vec(bytes).into());
                }
                ("socket", rest) => hello.sockets.push(Passed::parse(rest)?),
                _ => {}
            }
        }
        Ok(hello)
    }
}

impl Passed {
    fn parse(text: &str) -> Result<Self, String> {
        let mut passed = Self::default();
        for word in text.split(' ') {
            match word.split_once('=').unwrap_or((word, "")) {
                ("asked", value) => passed.asked = Some(decoded(value)),
                ("needed", _) => passed.is_needed = true,
                ("declared", _) => passed.is_declared = true,
                ("file", value) => passed.file = Some(File::parse(value)?),
                ("tickets", value) => passed.tickets = Some(value.to_owned()),
                _ => {}
            }
        }
        Ok(passed)
    }
}

impl File {
    fn parse(text: &str) -> Result<Self, String> {
        let mut parts = text.splitn(3, ':');
        let mut next = || parts.next().unwrap_or("");
        Ok(Self {
            device: number(next())?,
            inode: number(next())?,
            path: decoded(next()),
        })
    }
}

fn number<T: FromStr>(text: &str) -> Result<T, String> {
    let why = || format!("the other process says {text:?} where a number belongs");
    text.parse().map_err(|_| why())
}

fn decoded(value: &str) -> String {
    percent_decode_str(value).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

    use super::*;

    #[test]
    fn what_is_sent_is_received() {
        let (ours, theirs) = Channel::pair().unwrap();
        let theirs = Channel::of(theirs);
        let hello = Hello {
            generation: 7,
            predecessors: vec![17, 4],
            drop_unclaimed: true,
            pid_file: Some(OsString::from_vec(b"/run/a b=%\n\xff".into()).into()),
            sockets: vec![
                Passed {
                    asked: Some("unix:/run/a b=%\n".into()),
                    is_needed: true,
                    is_declared: false,
                    file: Some(File {
                        path: "/run/a b:=%\nü".into(),
                        device: 1,
                        inode: u64::MAX,
                    }),
                    tickets: Some("12:ab".into()),
                },
                Passed {
                    is_declared: true,
                    ..Passed::default()
                },
            ],
        };
        let messages = [
            Message::Hello(hello),
            Message::Accept,
            Message::Ping(9),
            Message::Go,
            Message::Stop,
            Message::Note("first\nsecond".into()),
            Message::Holds,
            Message::Waits("for".into()),
            Message::Ready(Vec::new()),
            Message::Ready(vec![0, 3]),
            Message::Failed(String::new()),
            Message::Pong(3),
            Message::Left,
            Message::Unknown,
        ];
        for message in &messages {
            ours.send(message).unwrap();
        }
        for message in messages {
            let (received, fds) = theirs.receive().unwrap().unwrap();
            assert_eq!((received, fds.len()), (message, 0));
        }
        let none = theirs.receive().unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
        let file = std::fs::File::open("/dev/null").unwrap();
        ours.send_with(&Message::Go, &[file.as_fd(), file.as_fd()])
            .unwrap();
        let (message, fds) = theirs.receive().unwrap().unwrap();
        assert_eq!((message, fds.len()), (Message::Go, 2));
        // One that has ended without reading.
        theirs.send(&Message::Left).unwrap();
        drop(ours);
        assert!(theirs.receive().unwrap().is_none());
        theirs.send(&Message::Left).unwrap_err();
    }

    #[test]
    fn another_version_may_say_more_but_not_speak_another_protocol() {
        let more = b"HELLO 1\ngeneration=2\ncolour=red\nsocket asked=:80 shape=round needed\n";
        let Ok(Message::Hello(hello)) = Message::parse(more) else {
            panic!("not understood");
        };
        assert_eq!(hello.generation, 2);
        assert_eq!(hello.sockets[0].asked.as_deref(), Some(":80"));
        assert!(hello.sockets[0].is_needed);
        assert_eq!(
            Message::parse(b"PONG 3\ncolour=red").unwrap(),
            Message::Pong(3)
        );
        assert_eq!(Message::parse(b"DANCE 3").unwrap(), Message::Unknown);
        let other = Message::parse(b"HELLO 2\nsomething=else").unwrap_err();
        assert!(other.contains("version 2"), "{other}");
        for broken in [
            "HELLO",
            "HELLO x",
            "PING -",
            "PONG",
            "HELLO 1\nsocket file=1:x:/a",
        ] {
            Message::parse(broken.as_bytes()).unwrap_err();
        }
    }

    #[test]
    fn a_message_that_is_too_long_is_an_error() {
        let (ours, _theirs) = Channel::pair().unwrap();
        let long = Message::Note("x".repeat(1 << 20));
        assert!(ours.send(&long).is_err());
    }
}
