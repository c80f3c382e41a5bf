//! TLS on a connection: rustls, driven so that nothing of what has arrived, or has not left, is hidden.
//!
//! Every call of rustls for a connection is here. rustls has bytes in three places: records that have not come in full,
//! decrypted bytes, and records that have not left. The first cannot be seen from outside, so the records that it gets
//! are counted here ([`Records`]).
//!
//! What [`Link`](super::link::Link) calls is not inlined, so that a link without TLS stays as small as it was.

use std::fmt;
use std::io::{self, BufRead, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker, ready};

use rustls::server::{Accepted, AcceptedAlert, Acceptor};
use rustls::{ServerConfig, ServerConnection, SupportedCipherSuite};
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

    /// An error of rustls' own, when it is read into: the message is in so many records that the buffer is full.
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
    records: Records,
    has_begun: bool,
}

impl Hello {
    /// Whether a byte has come.
    pub(crate) fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Waits for the whole message. Not to be called again after it is ready.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        link: &mut Plain,
    ) -> Poll<Result<Accepted, Failed>> {
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
            let mut source = Source {
                link,
                cx,
                records: &mut self.records,
            };
            match self.acceptor.read_tls(&mut source) {
                Ok(0) => return Poll::Ready(Err(Failed::silent(Fault::Left))),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    return Poll::Ready(Err(Failed::silent(Fault::too_large())));
                }
                Err(error) => return Poll::Ready(Err(Failed::silent(error))),
            }
            match self.acceptor.accept() {
                Ok(None) => {}
                Ok(Some(hello)) => return Poll::Ready(Ok(hello)),
                Err(refused) => return Poll::Ready(Err(Failed::with_alert(refused))),
            }
        }
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
#[derive(Debug)]
pub(crate) struct Secure {
    below: Plain,
    tls: ServerConnection,
    /// How many decrypted bytes `tls` has.
    plaintext: usize,
    records: Records,
    end: End,
    /// The client has been told that no more comes, or why.
    has_said_end: bool,
    /// How many bytes the kernel had taken before that.
    written_before_end: Option<u64>,
    /// The client has broken the protocol: what else it sends is of no interest.
    broken: bool,
    /// Who waits until the kernel takes what was written.
    writer: Option<Waker>,
    /// How many more records can be encrypted, if the version of TLS sets a limit: see [`records_left`].
    records_left: Option<u64>,
}

/// Wakes both. After an upgrade, the one who reads and the one who writes may be two tasks, and tokio knows one waker for
/// each direction: so the one who reads, and flushes on the way, must not take the other's place.
struct Both(Waker, Waker);

impl Wake for Both {
    fn wake(self: Arc<Self>) {
        self.0.wake_by_ref();
        self.1.wake_by_ref();
    }
}

/// How many records a connection can encrypt. TLS 1.3 changes its keys in time; TLS 1.2 cannot, and AES-GCM there
/// encrypts 2^24 records (RFC 9325, 4.4). Behind that, rustls takes what is written, and throws it away.
fn records_left(tls: &ServerConnection) -> Option<u64> {
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

/// How much is written at once: what rustls takes at most.
const AT_ONCE: usize = 64 << 10;

impl Secure {
    /// Answers the client's first message, which `accepted` is, and which has come as `hello`.
    pub(crate) fn new(
        below: Plain,
        hello: Hello,
        accepted: Accepted,
        config: Arc<ServerConfig>,
    ) -> Result<Self, (Plain, Box<Failed>)> {
        match accepted.into_connection(config) {
            // Before a ticket leaves: with each that it got, the client would come again in vain.
            Ok(tls) if has_outlived_its_client(&tls) => {
                let failed = Failed {
                    why: Fault::expired(),
                    alert: CERTIFICATE_EXPIRED.to_vec(),
                };
                Err((below, Box::new(failed)))
            }
            Ok(tls) => Ok(Self {
                records_left: records_left(&tls),
                writer: None,
                below,
                tls,
                plaintext: 0,
                records: hello.records,
                end: End::NotYet,
                has_said_end: false,
                written_before_end: None,
                broken: false,
            }),
            Err(refused) => Err((below, Box::new(Failed::with_alert(refused)))),
        }
    }

    /// Waits for the end of the handshake. If that fails, there may be an alert to be flushed.
    pub(crate) fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        loop {
            // The client may wait for what we have to say. If the kernel does not take it all, the task is woken.
            let _ = self.poll_flush(cx)?;
            if !self.tls.is_handshaking() {
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
            ready!(self.poll_decrypt(cx))?;
        }
    }

    /// What the handshake has agreed on.
    pub(crate) fn session(&self) -> &ServerConnection {
        &self.tls
    }

    #[inline(never)]
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.plaintext == 0 {
            if self.end != End::NotYet {
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_decrypt(cx)).map_err(io::Error::from)?;
        }
        let wanted = buf.remaining().min(self.plaintext);
        let read = self.tls.reader().read(buf.initialize_unfilled_to(wanted))?;
        buf.advance(read);
        self.plaintext -= read;
        if self.broken {
            self.plaintext = self.left_of_the_broken();
        }
        Poll::Ready(Ok(()))
    }

    /// Takes what the kernel has, and decrypts it, or learns that it is the end.
    fn poll_decrypt(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        if self.broken {
            return self.poll_discard(cx).map_err(Fault::from);
        }
        if self.tls.wants_write() {
            // Whoever has written, and now waits for an answer, may not have flushed.
            let _ = self.poll_flush_beside(cx)?;
        }
        let mut source = Source {
            link: &mut self.below,
            cx,
            records: &mut self.records,
        };
        match self.tls.read_tls(&mut source) {
            Ok(0) => self.end = End::Unsaid,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.broken = true;
                return Poll::Ready(Err(Fault::too_large()));
            }
            Err(error) => return Poll::Ready(Err(error.into())),
        }
        // After our end, rustls may want to send an alert, and asserts, in debug builds, that it has sent none.
        let mut process = || self.tls.process_new_packets();
        let processed = if self.has_said_end {
            contain(process).unwrap_or_else(|| Err(rustls::Error::HandshakeNotComplete))
        } else {
            process()
        };
        let state = match processed {
            Ok(state) => state,
            Err(error) => {
                // What rustls has to say about it, if anything, is an alert, and the last of what it says.
                self.has_said_end = true;
                self.broken = true;
                let _ = self.poll_flush_beside(cx);
                // There may be a whole request before it.
                self.plaintext = self.left_of_the_broken();
                if self.plaintext > 0 {
                    return Poll::Ready(Ok(()));
                }
                return Poll::Ready(Err(Fault::Tls(error)));
            }
        };
        self.plaintext = state.plaintext_bytes_to_read();
        if state.peer_has_closed() {
            self.end = End::Said;
        }
        if state.tls_bytes_to_write() > 0 {
            let _ = self.poll_flush_beside(cx)?;
        }
        Poll::Ready(Ok(()))
    }

    /// How many decrypted bytes can be read at once, after rustls has given up and does not tell any more.
    fn left_of_the_broken(&mut self) -> usize {
        self.tls.reader().fill_buf().map_or(0, <[u8]>::len)
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
        let count = self.tls.writer().write(bytes)?;
        let _ = self.poll_flush(cx)?;
        Poll::Ready(Ok(count))
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
        while self.tls.wants_write() {
            let mut sink = Sink {
                link: &mut self.below,
                cx,
            };
            match self.tls.write_tls(&mut sink) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    #[inline(never)]
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        if !self.has_said_end {
            self.has_said_end = true;
            self.written_before_end = Some(self.below.written());
            self.tls.send_close_notify();
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
            if self.plaintext > 0 {
                return Poll::Ready(Readable::Bytes);
            }
            if self.end != End::NotYet {
                return Poll::Ready(Readable::End);
            }
            if ready!(self.poll_decrypt(cx)).is_err() {
                return Poll::Ready(Readable::Failed);
            }
        }
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    #[inline(never)]
    pub(super) fn held(&self) -> usize {
        self.plaintext + self.records.part()
    }

    pub(super) fn holds_part(&self) -> bool {
        self.records.part() > 0
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

/// Where records end in what rustls gets. Each begins with five bytes, of which the last two are the length of what
/// follows (RFC 8446, 5.1).
#[derive(Debug, Default)]
struct Records {
    /// How many bytes of the first five have come; 0 between two records.
    head: u8,
    /// How many bytes follow the first five, as far as that is known.
    length: u16,
    /// How many of these have come.
    come: u16,
}

const HEAD: u8 = 5;

impl Records {
    fn pass(&mut self, mut bytes: &[u8]) {
        while let [first, rest @ ..] = bytes {
            if self.head < HEAD {
                self.head += 1;
                match self.head {
                    4 => self.length = u16::from(*first) << 8,
                    HEAD => self.length |= u16::from(*first),
                    _ => {}
                }
                bytes = rest;
            } else {
                let left = self.length - self.come;
                let step = u16::try_from(bytes.len()).unwrap_or(left).min(left);
                self.come += step;
                bytes = &bytes[step.into()..];
            }
            if self.head == HEAD && self.come == self.length {
                *self = Self::default();
            }
        }
    }

    /// How many bytes of the last record have come, if it has not come in full.
    fn part(&self) -> usize {
        usize::from(self.head) + usize::from(self.come)
    }
}

/// What rustls reads from.
struct Source<'a, 'b> {
    link: &'a mut Plain,
    cx: &'a mut Context<'b>,
    records: &'a mut Records,
}

impl Read for Source<'_, '_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut buf = ReadBuf::new(buf);
        match self.link.poll_read(self.cx, &mut buf) {
            Poll::Ready(read) => read?,
            Poll::Pending => return Err(io::ErrorKind::WouldBlock.into()),
        }
        self.records.pass(buf.filled());
        Ok(buf.filled().len())
    }
}

/// What rustls writes to.
struct Sink<'a, 'b> {
    link: &'a mut Plain,
    cx: &'a mut Context<'b>,
}

impl Write for Sink<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        or_would_block(self.link.poll_write(self.cx, bytes))
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match pieces {
            [piece] => self.write(piece),
            _ => or_would_block(self.link.poll_write_vectored(self.cx, pieces)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn or_would_block<T>(poll: Poll<io::Result<T>>) -> io::Result<T> {
    match poll {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::thread;

    use rcgen::{CertificateParams, KeyPair};
    use rustls::crypto::CryptoProvider;
    use rustls::pki_types::{PrivateKeyDer, ServerName};
    use rustls::version::TLS12;
    use rustls::{
        CipherSuiteCommon, ClientConfig, ClientConnection, RootCertStore, ServerConfig,
        SupportedCipherSuite, Tls12CipherSuite,
    };

    use crate::net::plain::Stream;
    use crate::tls::provider::default_provider;

    use super::{Hello, LAST_RECORDS, Records, Secure};

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

    /// A connection by TLS 1.2 that can encrypt so many records, and a client that reads to its end.
    async fn connection(records: u64) -> (Secure, thread::JoinHandle<std::io::Result<usize>>) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        let client = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&TLS12])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let server = ServerConfig::builder_with_provider(Arc::new(short_lived(records)))
            .with_protocol_versions(&[&TLS12])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();

        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
        let reads = thread::spawn(move || {
            let mut bytes = Vec::new();
            rustls::Stream::new(&mut client, &mut theirs).read_to_end(&mut bytes)
        });
        let mut plain = Stream::from(ours).drive().unwrap();
        let mut hello = Hello::default();
        let accepted = poll_fn(|cx| hello.poll(cx, &mut plain)).await.unwrap();
        let secure = Secure::new(plain, hello, accepted, Arc::new(server));
        let mut secure = secure.map_err(|(_, failed)| failed).unwrap();
        poll_fn(|cx| secure.poll_handshake(cx)).await.unwrap();
        (secure, reads)
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

    #[test]
    fn records_are_followed_in_pieces_of_any_size() {
        let record = |length: u16| {
            let head = [23, 3, 3, length.to_be_bytes()[0], length.to_be_bytes()[1]];
            [head.as_slice(), &vec![7; length.into()]].concat()
        };
        let lengths = [1, 0, 300, 16_384, 5, 0];
        let bytes = lengths.map(record).concat();
        let mut ends = Vec::new();
        for length in lengths {
            ends.push(ends.last().unwrap_or(&0) + 5 + usize::from(length));
        }
        for size in [1, 2, 3, 5, 7, 100, 4096, bytes.len()] {
            let mut records = Records::default();
            let mut at = 0;
            for piece in bytes.chunks(size) {
                records.pass(piece);
                at += piece.len();
                let last = ends.iter().rfind(|end| **end <= at);
                assert_eq!(records.part(), at - last.unwrap_or(&0), "{size} {at}");
            }
        }
    }
}
