//! All errors, as one type. Each kind of error has its status code in the C interface.

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::report::Report;

/// A result of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The reason why a call failed. An error is cheap to clone: every waiter of a stop gets the same one.
///
/// The error's text says what failed. Its [source](std::error::Error::source), an [`io::Error`], says why, if that is
/// known. `{error:#}` prints both.
///
/// ```
/// use httpdown::{Error, Listener};
///
/// let taken = Listener::bind("127.0.0.1:0")?;
/// match Listener::bind(&taken.local_addr().to_string()) {
///     Err(Error::Io(what, why)) => {
///         assert!(what.contains("127.0.0.1"));
///         assert_eq!(why.kind(), std::io::ErrorKind::AddrInUse);
///     }
///     other => panic!("{other:?}"),
/// }
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Error {
    /// An argument makes no sense; the text says which and why.
    InvalidArgument(String),
    /// An option asks for something that this version does not know.
    Unsupported(String),
    /// An address could not be parsed or resolved.
    Address(String),
    /// The certificates, the key or something else of the TLS settings cannot be used; the text says why.
    Tls(String),
    /// The operating system refused. The text says what was tried, and the source says why that failed.
    Io(String, Arc<io::Error>),
    /// The system had no more threads or descriptors. Text and source are like in [`Error::Io`].
    OutOfResources(String, Arc<io::Error>),
    /// The stop timeout passed, or a kill was asked for, and requests were cut. If the error is the result of a stop,
    /// it has the [report](Error::report). If it is the reason why one request cannot be answered any more, it has no
    /// report.
    Killed(Option<Box<Report>>),
    /// The kill timeout passed while handlers were still running. These handlers were abandoned. The error has the
    /// [report](Error::report).
    TimedOut(Option<Box<Report>>),
    /// The server has stopped, so this call came too late.
    Stopped,
    /// The call would wait for its own thread or runtime, or for a request that this thread holds.
    WouldDeadlock,
    /// The request has been answered already, or its answer has begun.
    AlreadyReplied,
    /// There is nothing to take yet, or no room yet. Either the call's own timeout has passed, or the thread must not
    /// wait.
    WouldBlock,
    /// The client has left.
    Gone,
    /// The client has broken the protocol in the body of its request.
    BadBody,
    /// The client has sent its request's body too slowly ([`Builder::body_timeout`](crate::Builder::body_timeout)), or
    /// has taken its answer too slowly ([`Builder::write_timeout`](crate::Builder::write_timeout)).
    TooSlow,
    /// A bug in this library, or a panic in the host's `Clock`.
    Panicked,
    /// A body is longer than the limit that the caller, or the option
    /// [`max_body_size`](crate::Builder::max_body_size), has set.
    TooLarge,
    /// The program could not be restarted. The text says why, with what the new process has said. This process goes on
    /// as before.
    RestartFailed(String),
    /// Not now: the text says what is under way.
    Busy(String),
    /// The process was forked, and this is the child; the server's threads live in the parent. Calls fail with this
    /// error in a child that was forked while a server had not been [closed](crate::Server::close), while
    /// [`Signals`](crate::Signals) were caught, or while a thread lived that was left behind. They also fail in that
    /// child's own children. Any other child may have its own servers.
    Forked,
}

impl Error {
    /// The report of the server, if this error is the result of a stop that had to cut something. Whatever the result,
    /// [`Server::report`](crate::Server::report) gives the report, too.
    ///
    /// ```
    /// # fn main() -> httpdown::Result<()> {
    /// # use httpdown::{Dispatch, Exchange, Listener, Server};
    /// # let handler = |exchange: Exchange| drop(exchange);
    /// # let listener = Listener::bind("127.0.0.1:0")?;
    /// # let server = Server::builder().handle(listener, Dispatch::default(), handler)?;
    /// match server.stop_blocking() {
    ///     Ok(report) => println!("{} requests, all finished", report.requests),
    ///     Err(error) => match error.report() {
    ///         Some(report) => println!("{error}: {} of {}", report.killed, report.requests),
    ///         None => return Err(error),
    ///     },
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn report(&self) -> Option<&Report> {
        match self {
            Self::Killed(report) | Self::TimedOut(report) => report.as_deref(),
            _ => None,
        }
    }

    /// Adds the report, for the result of a stop.
    pub(crate) fn with(self, report: Report) -> Self {
        match self {
            Self::Killed(_) => Self::Killed(Some(Box::new(report))),
            Self::TimedOut(_) => Self::TimedOut(Some(Box::new(report))),
            other => other,
        }
    }

    /// Says in the text whose error it is, if there is a text.
    pub(crate) fn of(mut self, whose: &str) -> Self {
        if let Self::InvalidArgument(text)
        | Self::Unsupported(text)
        | Self::Address(text)
        | Self::Tls(text)
        | Self::Io(text, _)
        | Self::OutOfResources(text, _) = &mut self
        {
            text.insert_str(0, &format!("{whose}: "));
        }
        self
    }

    pub(crate) fn io(what: impl Into<String>, error: io::Error) -> Self {
        let what = what.into();
        match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS | libc::EAGAIN) => {
                Self::OutOfResources(what, Arc::new(error))
            }
            _ => Self::Io(what, Arc::new(error)),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidArgument(text)
            | Self::Unsupported(text)
            | Self::Address(text)
            | Self::Tls(text)
            | Self::RestartFailed(text)
            | Self::Busy(text) => f.write_str(text),
            Self::Io(what, error) | Self::OutOfResources(what, error) => {
                f.write_str(what)?;
                // A caller that walks the sources finds the reason there.
                if f.alternate() {
                    write!(f, ": {error}")?;
                }
                Ok(())
            }
            Self::Killed(_) => f.write_str(
                "requests were cut, because the stop timeout had passed or a kill was asked for",
            ),
            Self::TimedOut(_) => {
                f.write_str("handlers were still running when the kill timeout had passed")
            }
            Self::Stopped => f.write_str("the server has stopped"),
            Self::WouldDeadlock => f.write_str("the call would wait for itself"),
            Self::AlreadyReplied => f.write_str("the request has been answered already"),
            Self::WouldBlock => f.write_str("the call would have to wait"),
            Self::Gone => f.write_str("the client has left"),
            Self::BadBody => f.write_str("the body of the request is malformed"),
            Self::TooSlow => f.write_str("the client is too slow"),
            Self::TooLarge => f.write_str("the body is longer than the limit"),
            Self::Panicked => f.write_str("the control thread panicked"),
            Self::Forked => f.write_str("the server lives in the parent of this forked process"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(_, error) | Self::OutOfResources(_, error) => Some(&**error),
            _ => None,
        }
    }
}
