//! The header of the PROXY protocol, by which a proxy says whose connection it passes on: version 1, a line of text,
//! and version 2, which is binary. See the specification,
//! <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::task::{Context, Poll, ready};

use tokio::io::ReadBuf;

use super::plain::Plain;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Behind the signature: version and command, family, length.
const FIXED: usize = 16;
const TEXT: &[u8; 6] = b"PROXY ";
/// The longest line of version 1, with its end.
const MOST_TEXT: usize = 107;
/// The longest header of version 2. Proxies that say much, such as the names in a client's certificate, need some
/// hundred bytes.
const MOST: usize = 4096;

/// Both ends of the connection that the proxy has accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) client: SocketAddr,
    pub(crate) server: SocketAddr,
}

/// Why there is no header.
#[derive(Debug)]
pub(crate) enum Fault {
    Malformed(&'static str),
    /// The peer has closed its side, or the connection has failed.
    Left,
}

/// A header that is being read.
#[derive(Debug, Default)]
pub(crate) struct Header(Vec<u8>);

impl Header {
    /// Whether a byte of it has come.
    pub(crate) fn has_begun(&self) -> bool {
        !self.0.is_empty()
    }

    /// Reads the header, and not a byte more. `None`: the connection is the proxy's own, or of a kind that we do not
    /// know.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut Plain,
    ) -> Poll<Result<Option<Ends>, Fault>> {
        let gone = |_: io::Error| Fault::Left;
        loop {
            let mut bytes = [0; MOST];
            let have = self.0.len();
            bytes[..have].copy_from_slice(&self.0);
            let peeked = ready!(socket.poll_peek(cx, &mut bytes[have..])).map_err(gone)?;
            let there = have + peeked.len();
            if there == have {
                return Poll::Ready(Err(Fault::Left));
            }
            let found = parse(&bytes[..there]).map_err(Fault::Malformed)?;
            let end = found.map_or(there, |(end, _)| end);
            let mut buf = ReadBuf::new(&mut bytes[have..end]);
            ready!(socket.poll_read(cx, &mut buf)).map_err(gone)?;
            self.0.extend_from_slice(buf.filled());
            if let Some((end, ends)) = found
                && self.0.len() == end
            {
                return Poll::Ready(Ok(ends));
            }
        }
    }
}

/// How long the header is at the beginning of these bytes, and what it says; `None` if more must come.
fn parse(bytes: &[u8]) -> Result<Option<(usize, Option<Ends>)>, &'static str> {
    let begins = |with: &[u8]| bytes.iter().zip(with).all(|(byte, other)| byte == other);
    if begins(SIGNATURE) {
        parse_binary(bytes)
    } else if begins(TEXT) {
        parse_text(bytes)
    } else {
        Err("there is none")
    }
}

fn parse_binary(bytes: &[u8]) -> Result<Option<(usize, Option<Ends>)>, &'static str> {
    let Some((&[.., command, family, high, low], behind)) = bytes.split_first_chunk::<FIXED>()
    else {
        return Ok(None);
    };
    if command >> 4 != 2 {
        return Err("its version is not 2");
    }
    let is_local = match command & 0xf {
        0 => true,
        1 => false,
        _ => return Err("its command is not known"),
    };
    if family >> 4 > 3 || family & 0xf > 2 {
        return Err("its family is not known");
    }
    let length = usize::from(u16::from_be_bytes([high, low]));
    if FIXED + length > MOST {
        return Err("it is too long");
    }
    let Some(content) = behind.get(..length) else {
        return Ok(None);
    };
    let ends = match family {
        _ if is_local => None,
        // TCP over IPv4, and IPv6. More may follow: TLVs.
        0x11 => Some(addresses::<4>(content).ok_or("it is too short for its addresses")?),
        0x21 => Some(addresses::<16>(content).ok_or("it is too short for its addresses")?),
        _ => None,
    };
    Ok(Some((FIXED + length, ends)))
}

/// Two addresses of so many bytes, and two ports.
fn addresses<const N: usize>(bytes: &[u8]) -> Option<Ends>
where
    [u8; N]: Into<IpAddr>,
{
    let (client, rest) = bytes.split_first_chunk::<N>()?;
    let (server, rest) = rest.split_first_chunk::<N>()?;
    let (from, rest) = rest.split_first_chunk()?;
    let (to, _) = rest.split_first_chunk()?;
    // An address of IPv4 may be mapped into IPv6.
    let of = |ip: [u8; N], port| (ip.into().to_canonical(), u16::from_be_bytes(port)).into();
    Some(Ends {
        client: of(*client, *from),
        server: of(*server, *to),
    })
}

fn parse_text(bytes: &[u8]) -> Result<Option<(usize, Option<Ends>)>, &'static str> {
    let line = &bytes[..bytes.len().min(MOST_TEXT)];
    let Some(end) = memchr::memchr(b'\n', line) else {
        return if line.len() == MOST_TEXT {
            Err("its line is too long")
        } else {
            Ok(None)
        };
    };
    let line = line[..end].strip_suffix(b"\r");
    let line = line.and_then(|line| str::from_utf8(&line[TEXT.len()..]).ok());
    let line = line.ok_or(NO_LINE)?;
    let mut fields = line.split(' ');
    let ends = match fields.next() {
        Some("UNKNOWN") => None,
        Some("TCP4") => Some(ends::<Ipv4Addr>(fields).ok_or(NO_LINE)?),
        Some("TCP6") => Some(ends::<Ipv6Addr>(fields).ok_or(NO_LINE)?),
        _ => return Err("its family is not known"),
    };
    Ok(Some((end + 1, ends)))
}

const NO_LINE: &str = "its line is malformed";

fn ends<'a, A: FromStr + Into<IpAddr>>(mut fields: impl Iterator<Item = &'a str>) -> Option<Ends> {
    let mut ip = || fields.next()?.parse::<A>().ok().map(Into::into);
    let (client, server) = (ip()?, ip()?);
    let mut port = || {
        let text = fields.next()?;
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
        let is_short = text == "0" || !text.starts_with('0');
        text.parse().ok().filter(|_| is_number && is_short)
    };
    let (from, to) = (port()?, port()?);
    fields.next().is_none().then(|| Ends {
        client: (client.to_canonical(), from).into(),
        server: (server.to_canonical(), to).into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binary(command: u8, family: u8, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, content].concat()
    }

    const V4: &[u8] = &[192, 0, 2, 1, 198, 51, 100, 2, 0x12, 0x34, 0, 80];

    fn said(header: &[u8]) -> Result<Option<(String, String)>, &'static str> {
        let (end, ends) = parse(header)?.expect("it is whole");
        assert_eq!(end, header.len());
        Ok(ends.map(|ends| (ends.client.to_string(), ends.server.to_string())))
    }

    type Said = Option<(&'static str, &'static str)>;

    /// Headers that are as they should be, and what they say.
    fn good() -> Vec<(Vec<u8>, Said)> {
        let ends = Some(("192.0.2.1:4660", "198.51.100.2:80"));
        let v6 = [
            &Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).octets()[..],
            &Ipv4Addr::new(192, 0, 2, 9).to_ipv6_mapped().octets(),
            &[0, 1, 0, 2],
        ]
        .concat();
        let text = |text: &str| text.as_bytes().to_vec();
        vec![
            (text("PROXY TCP4 192.0.2.1 198.51.100.2 4660 80\r\n"), ends),
            (
                text("PROXY TCP6 2001:db8::1 ::ffff:192.0.2.9 0 65535\r\n"),
                Some(("[2001:db8::1]:0", "192.0.2.9:65535")),
            ),
            (text("PROXY UNKNOWN\r\n"), None),
            (text("PROXY UNKNOWN whatever  it is\r\n"), None),
            (binary(0x21, 0x11, V4), ends),
            (binary(0x21, 0x11, &[V4, b"\x04\0\x02ab"].concat()), ends),
            (
                binary(0x21, 0x11, &[V4, &[7; MOST - FIXED - 12]].concat()),
                ends,
            ),
            (
                binary(0x21, 0x21, &v6),
                Some(("[2001:db8::1]:1", "192.0.2.9:2")),
            ),
            (binary(0x20, 0x00, b""), None),
            (binary(0x20, 0x11, V4), None),
            (binary(0x20, 0x11, b"short"), None),
            (binary(0x21, 0x00, b"whatever"), None),
            (binary(0x21, 0x31, &[0; 216]), None),
            (binary(0x21, 0x12, V4), None),
        ]
    }

    #[test]
    fn a_header_says_whose_the_connection_is() {
        for (header, ends) in good() {
            let ends = ends.map(|(client, server)| (client.to_owned(), server.to_owned()));
            assert_eq!(said(&header), Ok(ends), "{}", header.escape_ascii());
            // What follows belongs to the connection.
            let more = [&header[..], b"\r\nGET"].concat();
            assert_eq!(parse(&more), parse(&header));
            for end in 1..header.len() {
                assert_eq!(parse(&header[..end]), Ok(None), "{end}");
            }
        }
    }

    #[test]
    fn what_is_no_header_is_refused_as_soon_as_it_is_seen() {
        let line = |text: &str| format!("PROXY {text}\r\n").into_bytes();
        let too_long = format!("PROXY UNKNOWN {}", "x".repeat(MOST_TEXT - 14));
        for header in [
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            b"G".to_vec(),
            b"\x16\x03\x01".to_vec(),
            b"PROXY\t".to_vec(),
            b"\r\n\r\n\r".to_vec(),
            b"PROXY UNKNOWN\n".to_vec(),
            too_long.into_bytes(),
            line("TCP4 192.0.2.1 198.51.100.2 1 65536"),
            line("TCP4 192.0.2.1 198.51.100.2 01 1"),
            line("TCP4 192.0.2.1 198.51.100.2 +1 1"),
            line("TCP4 192.0.2.1 198.51.100.2 1 "),
            line("TCP4 192.0.2.1 198.51.100.2 1"),
            line("TCP4 192.0.2.1 198.51.100.2 1 1 "),
            line("TCP4 192.0.2.1  198.51.100.2 1 1"),
            line("TCP4 ::1 ::1 1 1"),
            line("TCP6 192.0.2.1 198.51.100.2 1 1"),
            line("TCP4 192.0.2.256 198.51.100.2 1 1"),
            line("UDP4 192.0.2.1 198.51.100.2 1 1"),
            line("tcp4 192.0.2.1 198.51.100.2 1 1"),
            line(""),
            line("TCP4 \u{e4} 198.51.100.2 1 1"),
            binary(0x11, 0x11, V4),
            binary(0x22, 0x11, V4),
            binary(0x21, 0x41, V4),
            binary(0x21, 0x13, V4),
            binary(0x21, 0x11, &V4[..11]),
            binary(0x21, 0x21, &[0; 35]),
            binary(0x21, 0x11, &[0; MOST - FIXED + 1])[..FIXED].to_vec(),
        ] {
            let text = header.escape_ascii();
            assert!(parse(&header).is_err(), "{text}: {:?}", parse(&header));
        }
    }
}
