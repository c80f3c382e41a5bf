//! TLS on a connection: rustls, driven so that nothing of what has arrived, or has not left, is hidden.
//!
//! Every call of rustls for a connection is here. Bytes wait in three places: records that have not come in full,
//! decrypted bytes, and records that have not left. All three are buffers of our own ([`Buffer`]), which an idle
//! connection gives back.
//!
//! What [`Link`](super::link::Link) calls is not inlined, so that a link without TLS stays as small as it was.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker, ready};

use rustls::server::{AcceptedAlert, Acceptor, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use rustls::{CommonState, ServerConfig, SupportedCipherSuite};
use tokio::io::ReadBuf;

use crate::contain::contain;
use crate::tls::has_outlived_its_client;

use super::plain::{Kind, Plain, Readable};

/// Why a handshake has failed, and what the client is told: an alert, ready to be written.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) why: Fault,
    pub(crate) alert: Vec<u8>,
}

#[derive(Debug)]
pub(crate) enum Fault {
    /// The client has broken the protocol, or there is no way to go on with it.
    Tls(rustls::Error),
    /// The client speaks HTTP, without TLS.
    PlainHttp,
    /// The bytes are no TLS, and no HTTP.
    NoTls,
    /// The client has left.
    Left,
    /// The connection has failed.
    Io(io::Error),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tls(error) => error.fmt(f),
            Self::PlainHttp => f.write_str("HTTP without TLS"),
            Self::NoTls => f.write_str("what has come is not TLS"),
            Self::Left => f.write_str("the client has left"),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl Fault {
    fn expired() -> Self {
        let why = rustls::CertificateError::Expired;
        Self::Tls(rustls::Error::InvalidCertificate(why))
    }

    /// The message is in so many records that there is no room for more.
    fn too_large() -> Self {
        Self::Tls(rustls::InvalidMessage::HandshakePayloadTooLarge.into())
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Failed {
    /// The client is told nothing, or has been told.
    pub(crate) fn silent(why: impl Into<Fault>) -> Self {
        Self {
            why: why.into(),
            alert: Vec::new(),
        }
    }

    fn with_alert((error, mut alert): (rustls::Error, AcceptedAlert)) -> Self {
        let mut bytes = Vec::new();
        // Writing to memory does not fail.
        let _ = alert.write_all(&mut bytes);
        Self {
            why: Fault::Tls(error),
            alert: bytes,
        }
    }
}

/// The first byte of a record that begins a handshake (RFC 8446, 5.1).
const HANDSHAKE: u8 = 22;

/// The first message of a client, as far as it has come.
#[derive(Default)]
pub(crate) struct Hello {
    acceptor: Acceptor,
    /// What has come.
    input: Buffer,
    server_name: Option<Box<str>>,
    has_begun: bool,
}

impl Hello {
    /// Whether a byte has come.
    pub(crate) fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// The name that the client has asked for (SNI), when the whole message has come.
    pub(crate) fn take_server_name(&mut self) -> Option<Box<str>> {
        self.server_name.take()
    }

    /// Waits for the whole message. Not to be called again after it is ready.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        link: &mut Plain,
    ) -> Poll<Result<(), Failed>> {
        let mut bytes = [0; READ];
        loop {
            if !self.has_begun {
                // Looked at, and not taken: a client without TLS gets an answer without TLS.
                let mut bytes = [0; 16];
                let bytes = ready!(link.poll_peek(cx, &mut bytes)).map_err(Failed::silent)?;
                match bytes {
                    [] => return Poll::Ready(Err(Failed::silent(Fault::Left))),
                    [HANDSHAKE, ..] => {}
                    [b'A'..=b'Z', ..] => return Poll::Ready(Err(Failed::silent(Fault::PlainHttp))),
                    _ => return Poll::Ready(Err(Failed::silent(Fault::NoTls))),
                }
                self.has_begun = true;
            }
            let mut buf = ReadBuf::new(&mut bytes);
            ready!(link.poll_read(cx, &mut buf)).map_err(Failed::silent)?;
            if buf.filled().is_empty() {
                return Poll::Ready(Err(Failed::silent(Fault::Left)));
            }
            self.input.extend(buf.filled());
            if self.is_whole(buf.filled())? {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Whether these bytes end the message.
    fn is_whole(&mut self, mut bytes: &[u8]) -> Result<bool, Failed> {
        while !bytes.is_empty() {
            // rustls has an error of its own only when it has no room.
            self.acceptor
                .read_tls(&mut bytes)
                .map_err(|_| Failed::silent(Fault::too_large()))?;
            if let Some(hello) = self.acceptor.accept().map_err(Failed::with_alert)? {
                self.server_name = hello.client_hello().server_name().map(Box::from);
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// A fatal alert, not encrypted (RFC 8446, 6.2).
const CERTIFICATE_EXPIRED: [u8; 7] = [21, 3, 3, 0, 2, 2, 45];

/// What is known of the end of the client's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    NotYet,
    /// The client has said that this is the end (`close_notify`).
    Said,
    /// The connection has ended without that. An attacker can do this.
    Unsaid,
}

/// A connection with TLS.
pub(crate) struct Secure {
    below: Plain,
    tls: UnbufferedServerConnection,
    /// What has come and is not decrypted: a part of a record, or of a message of TLS itself.
    input: Buffer,
    /// What has been decrypted, and not read.
    plaintext: Buffer,
    /// What has been encrypted, and not left.
    output: Buffer,
    end: End,
    /// The client has been told that no more comes, or why.
    has_said_end: bool,
    /// How many bytes the kernel had taken before that.
    written_before_end: Option<u64>,
    /// The client has broken the protocol: what else it sends is of no interest.
    broken: bool,
    /// Why there is no more behind what has been read.
    fault: Option<Box<Fault>>,
    /// Who waits until the kernel takes what was written.
    writer: Option<Waker>,
    /// How many more records can be encrypted, if the version of TLS sets a limit: see [`records_left`].
    records_left: Option<u64>,
}

impl fmt::Debug for Secure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secure")
            .field("below", &self.below)
            .field("end", &self.end)
            .field("broken", &self.broken)
            .finish_non_exhaustive()
    }
}

/// What rustls is asked to encrypt.
#[derive(Clone, Copy)]
enum Say<'a> {
    Nothing,
    Bytes(&'a [u8]),
    /// `close_notify`
    End,
}

/// Wakes both. After an upgrade, the one who reads and the one who writes may be two tasks, and tokio knows one waker
/// for each direction: so the one who reads, and flushes on the way, must not take the other's place.
struct Both(Waker, Waker);

impl Wake for Both {
    fn wake(self: Arc<Self>) {
        self.0.wake_by_ref();
        self.1.wake_by_ref();
    }
}

/// How many records a connection can encrypt. TLS 1.3 changes its keys in time; TLS 1.2 cannot, and AES-GCM there
/// encrypts 2^24 records (RFC 9325, 4.4). Behind that, rustls takes what is written, and throws it away.
fn records_left(tls: &CommonState) -> Option<u64> {
    /// What rustls may need for itself.
    const SPARE: u64 = 1 << 10;
    match tls.negotiated_cipher_suite()? {
        SupportedCipherSuite::Tls12(suite) => {
            Some(suite.common.confidentiality_limit.saturating_sub(SPARE))
        }
        SupportedCipherSuite::Tls13(_) => None,
    }
}

/// When no more records than this are left, the next answer is to be the last, and says so. It can be 64 GB long.
const LAST_RECORDS: u64 = 1 << 22;

/// The longest content of a record (RFC 8446, 5.1).
const RECORD: usize = 1 << 14;

/// How much longer than its content a record is at most.
const OVERHEAD: usize = 64;

/// How much is written at once, and how much is read.
const AT_ONCE: usize = 64 << 10;

/// How much is read at once, besides the rest of a record that has begun.
const READ: usize = 4 << 10;

/// How long a message of TLS itself may be, with the records that it is in. rustls has the same limit for a client's
/// first message.
const MESSAGE: usize = (1 << 16) - 1;

impl Secure {
    /// Answers the client's first message, which has come as `hello`.
    pub(crate) fn new(
        below: Plain,
        hello: Hello,
        config: Arc<ServerConfig>,
    ) -> Result<Self, (Plain, Box<Failed>)> {
        let tls = match UnbufferedServerConnection::new(config) {
            Ok(tls) => tls,
            Err(error) => return Err((below, Box::new(Failed::silent(Fault::Tls(error))))),
        };
        let mut secure = Self {
            below,
            tls,
            input: hello.input,
            plaintext: Buffer::default(),
            output: Buffer::default(),
            end: End::NotYet,
            has_said_end: false,
            written_before_end: None,
            broken: false,
            fault: None,
            writer: None,
            records_left: None,
        };
        let failed = match secure.process(&mut ReadBuf::new(&mut []), Say::Nothing) {
            // Before a ticket leaves: with each that it got, the client would come again in vain.
            Ok(()) if has_outlived_its_client(&secure.tls) => Failed {
                why: Fault::expired(),
                alert: CERTIFICATE_EXPIRED.to_vec(),
            },
            Ok(()) => return Ok(secure),
            Err(error) => Failed {
                why: Fault::Tls(error),
                alert: secure.output.held().to_vec(),
            },
        };
        Err((secure.below, Box::new(failed)))
    }

    /// Waits for the end of the handshake. If that fails, there may be an alert to be flushed.
    pub(crate) fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        loop {
            // The client may wait for what we have to say. If the kernel does not take it all, the task is woken.
            let _ = self.poll_flush(cx)?;
            if !self.tls.is_handshaking() {
                self.records_left = records_left(&self.tls);
                // After a second first message, this was not known before.
                return Poll::Ready(if has_outlived_its_client(&self.tls) {
                    Err(Fault::expired())
                } else {
                    Ok(())
                });
            }
            if self.end != End::NotYet {
                return Poll::Ready(Err(Fault::Left));
            }
            ready!(self.poll_decrypt(cx, &mut ReadBuf::new(&mut [])))?;
        }
    }

    /// What the handshake has agreed on.
    pub(crate) fn session(&self) -> &CommonState {
        &self.tls
    }

    /// Reads what is there, up to [`AT_ONCE`] bytes, if there is room for that. Whoever reads a body may be on another
    /// thread, and a record would be little to wake it for.
    #[inline(never)]
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.plaintext.is_empty() || buf.remaining() == 0 {
            let bytes = self.plaintext.held();
            let count = buf.remaining().min(bytes.len());
            buf.put_slice(&bytes[..count]);
            self.plaintext.take(count);
            return Poll::Ready(Ok(()));
        }
        let start = buf.filled().len();
        loop {
            let taken = buf.filled().len() - start;
            // With room for a whole record, nothing that is decrypted stays behind.
            let has_room = taken < AT_ONCE && buf.remaining() >= RECORD;
            if self.end != End::NotYet || (taken > 0 && !has_room) {
                return Poll::Ready(Ok(()));
            }
            match self.poll_decrypt(cx, buf) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(fault)) if taken == 0 => return Poll::Ready(Err(fault.into())),
                Poll::Ready(Err(fault)) => {
                    self.fault = Some(Box::new(fault));
                    return Poll::Ready(Ok(()));
                }
                Poll::Pending if taken == 0 => {
                    // After an upgrade, this may be for long. The input is kept, because more of a body may come.
                    self.plaintext.give_back();
                    self.output.give_back();
                    return Poll::Pending;
                }
                Poll::Pending => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Takes what the kernel has, and decrypts it, or learns that it is the end. The decrypted bytes go into `buf`, as
    /// far as it has room; `plaintext` must be empty.
    fn poll_decrypt(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<Result<(), Fault>> {
        if let Some(fault) = self.fault.take() {
            return Poll::Ready(Err(*fault));
        }
        if self.broken {
            return self.poll_discard(cx).map_err(Fault::from);
        }
        if !self.output.is_empty() {
            // Whoever has written, and now waits for an answer, may not have flushed.
            let _ = self.poll_flush_beside(cx)?;
        }
        if self.input.len() >= MESSAGE {
            self.broken = true;
            self.input = Buffer::default();
            return Poll::Ready(Err(Fault::too_large()));
        }
        let mut room = ReadBuf::new(self.input.room(wanted(self.input.held())));
        let polled = self.below.poll_read(cx, &mut room);
        let count = room.filled().len();
        ready!(polled)?;
        self.input.add(count);
        if count == 0 {
            self.end = End::Unsaid;
            return Poll::Ready(Ok(()));
        }
        let start = buf.filled().len();
        let processed = self.process(buf, Say::Nothing);
        if let Err(error) = processed {
            // What rustls has to say about it, if anything, is an alert, and the last of what it says.
            self.has_said_end = true;
            self.broken = true;
            self.input = Buffer::default();
            let _ = self.poll_flush_beside(cx);
            // There may be a whole request before it.
            if buf.filled().len() > start || !self.plaintext.is_empty() {
                self.fault = Some(Box::new(Fault::Tls(error)));
                return Poll::Ready(Ok(()));
            }
            return Poll::Ready(Err(Fault::Tls(error)));
        }
        if !self.output.is_empty() {
            let _ = self.poll_flush_beside(cx)?;
        }
        Poll::Ready(Ok(()))
    }

    /// Has rustls decrypt all whole records that have come, and encrypt what it has to say itself, and then `say`.
    /// Decrypted bytes go into `buf`, as far as it has room. If this fails, an alert may be among what is to leave.
    fn process(&mut self, buf: &mut ReadBuf<'_>, say: Say<'_>) -> Result<(), rustls::Error> {
        if !self.has_said_end {
            return self.process_all(buf, say);
        }
        // After our end, rustls may want to send an alert, and asserts, in debug builds, that it has sent none.
        contain(|| self.process_all(buf, say)).unwrap_or(Err(rustls::Error::HandshakeNotComplete))
    }

    fn process_all(&mut self, buf: &mut ReadBuf<'_>, say: Say<'_>) -> Result<(), rustls::Error> {
        let result = loop {
            let UnbufferedStatus { discard, state } =
                self.tls.process_tls_records(self.input.held_mut());
            let goes_on = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let bytes = record?.payload;
                        let direct = if self.plaintext.is_empty() {
                            buf.remaining().min(bytes.len())
                        } else {
                            0
                        };
                        buf.put_slice(&bytes[..direct]);
                        self.plaintext.extend(&bytes[direct..]);
                    }
                    true
                }
                Ok(ConnectionState::EncodeTlsData(mut record)) => {
                    encode(&mut self.output, |room| record.encode(room))?;
                    true
                }
                Ok(ConnectionState::TransmitTlsData(waits)) => {
                    // It waits in our buffer.
                    waits.done();
                    true
                }
                Ok(ConnectionState::PeerClosed) => {
                    self.end = End::Said;
                    true
                }
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    match say {
                        Say::Nothing => Ok(()),
                        Say::Bytes(bytes) => {
                            encode(&mut self.output, |room| traffic.encrypt(bytes, room))
                        }
                        Say::End => {
                            encode(&mut self.output, |room| traffic.queue_close_notify(room))
                        }
                    }?;
                    false
                }
                // The handshake is not done, or both sides have ended. Early data is never accepted.
                Ok(_) => match say {
                    Say::Bytes(_) => return Err(rustls::Error::HandshakeNotComplete),
                    Say::Nothing | Say::End => false,
                },
                Err(error) => break Err(error),
            };
            self.input.take(discard);
            if !goes_on {
                break Ok(());
            }
        };
        if self.end == End::Said {
            // What comes behind the client's end is of no interest (RFC 8446, 6.1).
            self.input = Buffer::default();
        }
        // The alert, if this has failed. rustls must not see the same input again.
        while self.tls.wants_write() {
            match self.tls.process_tls_records(self.input.held_mut()).state {
                Ok(ConnectionState::EncodeTlsData(mut record)) => {
                    encode(&mut self.output, |room| record.encode(room))?;
                }
                _ => break,
            }
        }
        result
    }

    /// Reads to the end of what the client sends. If it stayed in the kernel, the alert might not arrive.
    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut bytes = [0; 4096];
        loop {
            let mut buf = ReadBuf::new(&mut bytes);
            ready!(self.below.poll_read(cx, &mut buf))?;
            if buf.filled().is_empty() {
                self.end = End::Unsaid;
                return Poll::Ready(Ok(()));
            }
        }
    }

    #[inline(never)]
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        // What was written before leaves first. So never more than one write waits here.
        ready!(self.poll_flush(cx))?;
        let bytes = &bytes[..bytes.len().min(AT_ONCE)];
        if let Some(left) = &mut self.records_left {
            let records = bytes.len().div_ceil(RECORD) as u64;
            let Some(now) = left.checked_sub(records) else {
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            };
            *left = now;
        }
        if self.broken {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        self.output
            .room(bytes.len() + OVERHEAD * bytes.len().div_ceil(RECORD));
        self.process(&mut ReadBuf::new(&mut []), Say::Bytes(bytes))
            .map_err(Fault::Tls)?;
        let _ = self.poll_flush(cx)?;
        Poll::Ready(Ok(bytes.len()))
    }

    /// Whether the connection has to end before long, because its keys have encrypted nearly as much as they may.
    #[inline(never)]
    pub(super) fn is_worn(&self) -> bool {
        self.records_left.is_some_and(|left| left < LAST_RECORDS)
    }

    /// Whoever writes waits here.
    #[inline(never)]
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = self.poll_flush_as(cx);
        self.writer = poll.is_pending().then(|| cx.waker().clone());
        poll
    }

    /// Flushes on behalf of somebody who does not write.
    fn poll_flush_beside(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.writer {
            Some(writer) if !writer.will_wake(cx.waker()) => {
                let both = Arc::new(Both(writer.clone(), cx.waker().clone())).into();
                self.poll_flush_as(&mut Context::from_waker(&both))
            }
            _ => self.poll_flush_as(cx),
        }
    }

    fn poll_flush_as(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.output.is_empty() {
            let count = ready!(self.below.poll_write(cx, self.output.held()))?;
            self.output.take(count);
        }
        Poll::Ready(Ok(()))
    }

    /// Waits until the kernel has room for bytes. Whoever writes waits here.
    pub(super) fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.below.poll_writable(cx)
    }

    #[inline(never)]
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        if !self.has_said_end {
            self.has_said_end = true;
            self.written_before_end = Some(self.below.written());
            // In a handshake that is not done, there is nothing to be said.
            let _ = self.process(&mut ReadBuf::new(&mut []), Say::End);
            ready!(self.poll_flush(cx))?;
        }
        self.below.poll_shutdown(cx)
    }

    pub(super) fn written(&self) -> u64 {
        self.written_before_end
            .unwrap_or_else(|| self.below.written())
    }

    #[inline(never)]
    pub(super) fn written_behind(&self) -> u64 {
        self.below.written() - self.written()
    }

    #[inline(never)]
    pub(super) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<Readable> {
        loop {
            if !self.plaintext.is_empty() {
                return Poll::Ready(Readable::Bytes);
            }
            if self.end != End::NotYet {
                return Poll::Ready(Readable::End);
            }
            let polled = self.poll_decrypt(cx, &mut ReadBuf::new(&mut []));
            if polled.is_pending() {
                // Between two requests.
                for buffer in [&mut self.input, &mut self.plaintext, &mut self.output] {
                    buffer.give_back();
                }
            }
            if ready!(polled).is_err() {
                return Poll::Ready(Readable::Failed);
            }
        }
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    #[inline(never)]
    pub(super) fn held(&self) -> usize {
        self.plaintext.len() + self.input.len()
    }

    pub(super) fn holds_part(&self) -> bool {
        !self.input.is_empty()
    }

    pub(super) fn is_truncated(&self) -> bool {
        self.end == End::Unsaid
    }

    #[inline(never)]
    pub(super) fn poll_peek<'a>(
        &self,
        cx: &mut Context<'_>,
        bytes: &'a mut [u8],
    ) -> Poll<io::Result<&'a [u8]>> {
        self.below.poll_peek(cx, bytes)
    }

    pub(super) fn kind(&self) -> Kind {
        self.below.kind()
    }
}

impl AsFd for Secure {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.below.as_fd()
    }
}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Io(error) => error,
            Fault::Tls(error) => Self::new(io::ErrorKind::InvalidData, error),
            Fault::Left => io::ErrorKind::UnexpectedEof.into(),
            Fault::PlainHttp | Fault::NoTls => io::ErrorKind::InvalidData.into(),
        }
    }
}

/// How many bytes are to be read behind these, which have come. A client gets room for the rest of a record as far as
/// that is in proportion to what it has sent.
fn wanted(input: &[u8]) -> usize {
    // Of the first five bytes of a record, the last two are the length of what follows (RFC 8446, 5.1).
    let rest = match *input {
        [_, _, _, high, low, ref come @ ..] => {
            usize::from(u16::from_be_bytes([high, low])).saturating_sub(come.len())
        }
        _ => 0,
    };
    READ + rest.min(4 * input.len())
}

/// Has rustls write at the end of a buffer, whatever room that takes.
fn encode<E: Into<Short>>(
    output: &mut Buffer,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, E>,
) -> Result<(), rustls::Error> {
    let count = match write(output.room(0)) {
        Ok(count) => count,
        Err(error) => match error.into() {
            Short(Some(size)) => write(output.room(size)).map_err(|_| exhausted())?,
            Short(None) => return Err(exhausted()),
        },
    };
    output.add(count);
    Ok(())
}

/// How much room rustls needs, if that is why it has written nothing.
struct Short(Option<usize>);

impl From<EncodeError> for Short {
    fn from(error: EncodeError) -> Self {
        Self(match error {
            EncodeError::InsufficientSize(size) => Some(size.required_size),
            EncodeError::AlreadyEncoded => None,
        })
    }
}

impl From<EncryptError> for Short {
    fn from(error: EncryptError) -> Self {
        Self(match error {
            EncryptError::InsufficientSize(size) => Some(size.required_size),
            EncryptError::EncryptExhausted => None,
        })
    }
}

/// The keys are used up. That is not reached: see [`records_left`].
fn exhausted() -> rustls::Error {
    rustls::Error::EncryptError
}

/// Bytes that wait, and room for more.
#[derive(Default)]
struct Buffer {
    bytes: Vec<u8>,
    /// The bytes that wait begin here.
    from: usize,
    /// They end here.
    to: usize,
}

impl Buffer {
    fn len(&self) -> usize {
        self.to - self.from
    }

    fn is_empty(&self) -> bool {
        self.from == self.to
    }

    fn held(&self) -> &[u8] {
        &self.bytes[self.from..self.to]
    }

    fn held_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.from..self.to]
    }

    /// Room for at least so many bytes behind those that wait.
    fn room(&mut self, count: usize) -> &mut [u8] {
        if self.bytes.len() - self.to < count {
            self.bytes.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, self.len());
            if self.bytes.len() - self.to < count {
                self.bytes.resize(self.to + count, 0);
            }
        }
        &mut self.bytes[self.to..]
    }

    /// So many bytes have been written into the room.
    fn add(&mut self, count: usize) {
        self.to += count;
    }

    fn extend(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.room(bytes.len())[..bytes.len()].copy_from_slice(bytes);
            self.add(bytes.len());
        }
    }

    /// The first of the bytes that wait are not needed any more.
    fn take(&mut self, count: usize) {
        self.from += count;
        if self.from == self.to {
            (self.from, self.to) = (0, 0);
        }
    }

    /// Keeps no memory, if no bytes wait.
    fn give_back(&mut self) {
        if self.is_empty() {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::task::Poll;
    use std::thread;

    use rcgen::{CertificateParams, KeyPair};
    use rustls::crypto::CryptoProvider;
    use rustls::pki_types::{PrivateKeyDer, ServerName};
    use rustls::version::{TLS12, TLS13};
    use rustls::{
        CipherSuiteCommon, ClientConfig, ClientConnection, RootCertStore, ServerConfig,
        SupportedCipherSuite, SupportedProtocolVersion, Tls12CipherSuite,
    };
    use tokio::io::ReadBuf;
    use tokio::task::yield_now;

    use crate::net::plain::Stream;
    use crate::tls::provider::default_provider;

    use super::{Buffer, Hello, LAST_RECORDS, READ, Secure, wanted};

    /// The provider, with one suite of TLS 1.2 that encrypts so many records.
    fn short_lived(records: u64) -> CryptoProvider {
        let mut provider = default_provider();
        let of = provider.cipher_suites.iter().find_map(|suite| match suite {
            SupportedCipherSuite::Tls12(suite) => Some(*suite),
            SupportedCipherSuite::Tls13(_) => None,
        });
        let of = of.unwrap();
        let suite = Tls12CipherSuite {
            common: CipherSuiteCommon {
                suite: of.common.suite,
                hash_provider: of.common.hash_provider,
                confidentiality_limit: records,
            },
            prf_provider: of.prf_provider,
            kx: of.kx,
            sign: of.sign,
            aead_alg: of.aead_alg,
        };
        provider.cipher_suites = vec![SupportedCipherSuite::Tls12(Box::leak(Box::new(suite)))];
        provider
    }

    /// The settings of a client and a server.
    fn configs(
        version: &'static SupportedProtocolVersion,
        of_server: CryptoProvider,
    ) -> (ClientConfig, ServerConfig) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        let client = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let server = ServerConfig::builder_with_provider(Arc::new(of_server))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        (client, server)
    }

    /// A connection, after its handshake, and what its client does on a thread.
    async fn connect<T: Send + 'static>(
        (client, server): (ClientConfig, ServerConfig),
        run: impl FnOnce(ClientConnection, UnixStream) -> T + Send + 'static,
    ) -> (Secure, thread::JoinHandle<T>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let client = ClientConnection::new(Arc::new(client), name).unwrap();
        let runs = thread::spawn(move || run(client, theirs));
        let mut plain = Stream::from(ours).drive().unwrap();
        let mut hello = Hello::default();
        poll_fn(|cx| hello.poll(cx, &mut plain)).await.unwrap();
        let secure = Secure::new(plain, hello, Arc::new(server));
        let mut secure = secure.map_err(|(_, failed)| failed).unwrap();
        poll_fn(|cx| secure.poll_handshake(cx)).await.unwrap();
        (secure, runs)
    }

    /// A connection by TLS 1.2 that can encrypt so many records, and a client that reads to its end.
    async fn connection(records: u64) -> (Secure, thread::JoinHandle<std::io::Result<usize>>) {
        let configs = configs(&TLS12, short_lived(records));
        connect(configs, |mut client, mut socket| {
            let mut bytes = Vec::new();
            rustls::Stream::new(&mut client, &mut socket).read_to_end(&mut bytes)
        })
        .await
    }

    /// A connection, and a client that only has shaken hands.
    async fn pair() -> (Secure, ClientConnection, UnixStream) {
        let configs = configs(&TLS13, default_provider());
        let (secure, client) = connect(configs, |mut client, mut socket| {
            while client.is_handshaking() {
                client.complete_io(&mut socket).unwrap();
            }
            (client, socket)
        })
        .await;
        let (client, socket) = client.join().unwrap();
        (secure, client, socket)
    }

    /// The records that a client would send for these bytes.
    fn seal(client: &mut ClientConnection, bytes: &[u8]) -> Vec<u8> {
        client.writer().write_all(bytes).unwrap();
        let mut sealed = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut sealed).unwrap();
        }
        sealed
    }

    /// Reads so many bytes.
    async fn read(secure: &mut Secure, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        let mut buf = ReadBuf::new(&mut bytes);
        while buf.remaining() > 0 {
            poll_fn(|cx| secure.poll_read(cx, &mut buf)).await.unwrap();
        }
        bytes
    }

    #[tokio::test]
    async fn a_connection_says_that_it_is_worn_before_it_can_encrypt_no_more() {
        let (mut secure, reads) = connection((1 << 10) + LAST_RECORDS + 1).await;
        assert!(!secure.is_worn());
        for _ in 0..2 {
            poll_fn(|cx| secure.poll_write(cx, b"x")).await.unwrap();
        }
        assert!(secure.is_worn());
        poll_fn(|cx| secure.poll_shutdown(cx)).await.unwrap();
        assert_eq!(reads.join().unwrap().unwrap(), 2);
    }

    #[tokio::test]
    async fn what_can_not_be_encrypted_is_not_taken() {
        let (mut secure, reads) = connection((1 << 10) + 5).await;
        let bytes = vec![7; 100_000];
        let count = poll_fn(|cx| secure.poll_write(cx, &bytes)).await.unwrap();
        assert_eq!(count, 64 << 10);
        poll_fn(|cx| secure.poll_write(cx, &bytes))
            .await
            .unwrap_err();
        poll_fn(|cx| secure.poll_shutdown(cx)).await.unwrap();
        assert_eq!(reads.join().unwrap().unwrap(), 64 << 10);
    }

    #[tokio::test]
    async fn an_idle_connection_has_no_buffers() {
        let (mut secure, mut client, mut socket) = pair().await;
        let bytes: Vec<u8> = (0..=u8::MAX).cycle().take(50_000).collect();
        let sealed = seal(&mut client, &bytes);
        socket.write_all(&sealed).unwrap();
        assert_eq!(read(&mut secure, bytes.len()).await, bytes);
        let written = poll_fn(|cx| secure.poll_write(cx, &bytes)).await.unwrap();
        assert_eq!(written, bytes.len());
        poll_fn(|cx| {
            assert!(secure.poll_readable(cx).is_pending());
            Poll::Ready(())
        })
        .await;
        for buffer in [&secure.input, &secure.plaintext, &secure.output] {
            assert_eq!(buffer.bytes.capacity(), 0);
        }
        // And goes on.
        socket.write_all(&seal(&mut client, b"more")).unwrap();
        poll_fn(|cx| secure.poll_readable(cx)).await;
        assert_eq!(secure.held(), 4);
        assert_eq!(read(&mut secure, 4).await, b"more");
    }

    #[tokio::test]
    async fn a_part_of_a_record_is_known_in_pieces_of_any_size() {
        let (mut secure, mut client, mut socket) = pair().await;
        for size in [1, 2, 3, 5, 7, 100] {
            for length in [1, 300] {
                let bytes = vec![7; length];
                let sealed = seal(&mut client, &bytes);
                let mut come = 0;
                for piece in sealed.chunks(size) {
                    socket.write_all(piece).unwrap();
                    come += piece.len();
                    let is_part = come < sealed.len();
                    let held = if is_part { come } else { length };
                    while (secure.held(), secure.holds_part()) != (held, is_part) {
                        poll_fn(|cx| Poll::Ready(secure.poll_readable(cx).is_ready())).await;
                        yield_now().await;
                    }
                }
                assert_eq!(read(&mut secure, length).await, bytes);
            }
        }
    }

    #[test]
    fn room_is_given_for_the_rest_of_a_record_in_proportion_to_what_has_come() {
        let record = |length: u16, come: usize| {
            let [high, low] = length.to_be_bytes();
            [[23, 3, 3, high, low].as_slice(), &vec![7; come]].concat()
        };
        assert_eq!(wanted(&[]), READ);
        assert_eq!(wanted(&[23, 3, 3, 64]), READ);
        assert_eq!(wanted(&record(100, 0)), READ + 20);
        assert_eq!(wanted(&record(100, 40)), READ + 60);
        assert_eq!(wanted(&record(16_000, 95)), READ + 400);
        assert_eq!(wanted(&record(16_000, 4_091)), READ + 16_000 - 4_091);
        // Of a message of TLS itself, several records can wait.
        assert_eq!(wanted(&record(100, 500)), READ);
    }

    #[test]
    fn a_buffer_keeps_what_waits_and_grows_for_it() {
        let mut buffer = Buffer::default();
        let (mut all, mut taken) = (Vec::new(), Vec::<u8>::new());
        for step in 0..50_u8 {
            let bytes = vec![step; usize::from(step) * 7 % 60];
            buffer.extend(&bytes);
            all.extend(bytes);
            let count = usize::from(step) * 5 % 41;
            let count = count.min(buffer.len());
            taken.extend(&buffer.held()[..count]);
            buffer.take(count);
            assert!(buffer.room(10).len() >= 10);
            buffer.give_back();
            assert_eq!(buffer.is_empty(), buffer.bytes.is_empty());
        }
        taken.extend(buffer.held());
        assert_eq!(taken, all);
    }
}
