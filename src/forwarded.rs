//! Who has sent a request, as the proxies say that are believed.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::header::{FORWARDED, HOST};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::addr::{Addr, UnixAddr};
use crate::error::{Error, Result};
use crate::trust::Networks;

static FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
static FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
static REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// Who has sent a request, and what they have asked for: what is to be believed of that.
///
/// Without [`trusted_proxies`](crate::Builder::trusted_proxies), this is what the connection says. If the connection
/// comes from a proxy that is trusted, it is what that proxy says in the request's head, and what other trusted proxies
/// before it have said. What stands before that may be the client's own invention, and is not believed.
///
/// Get it by [`Exchange::client`](crate::Exchange::client), or, in a service, by
/// [`ConnInfo::client`](crate::ConnInfo::client).
///
/// ```
/// use httpdown::{Dispatch, Exchange, Listener, Server};
///
/// # fn main() -> httpdown::Result<()> {
/// let handler = |exchange: Exchange| {
///     let client = exchange.client();
///     let host = client.host.as_deref().unwrap_or_default();
///     let text = format!("{} asks for {}://{host}{}\n", client.addr, client.scheme, exchange.uri());
///     let _ = exchange.reply(http::Response::new(text.into()));
/// };
/// let server = Server::builder()
///     .trusted_proxies("10.0.0.0/8, ::1")
///     .handle(Listener::bind("127.0.0.1:0")?, Dispatch::default(), handler)?;
/// server.stop_blocking()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Client {
    /// The client's address.
    pub addr: ClientAddr,
    /// `http` or `https`: how the client has asked.
    pub scheme: &'static str,
    /// The host that the client has asked for, perhaps with a port; `None` without one (HTTP/1.0).
    pub host: Option<String>,
}

/// The address of a [`Client`].
///
/// Its text is `192.0.2.1` or `2001:db8::1` if no port is known, otherwise `192.0.2.1:50000` or `[2001:db8::1]:50000`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClientAddr {
    /// An IP address, and the port, if it is known.
    Ip(IpAddr, Option<u16>),
    /// The client has connected by a Unix socket.
    Unix(UnixAddr),
    /// A trusted proxy does not say the address. It says `unknown`, or a name that it has made up, which begins with an
    /// underscore. Also `unknown` if what it says makes no sense.
    Hidden(String),
}

impl ClientAddr {
    /// The IP address, if it is known.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Ip(ip, _) => Some(*ip),
            Self::Unix(_) | Self::Hidden(_) => None,
        }
    }

    fn unknown() -> Self {
        Self::Hidden("unknown".into())
    }
}

impl fmt::Display for ClientAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip, None) => ip.fmt(f),
            Self::Ip(ip, Some(port)) => SocketAddr::new(*ip, *port).fmt(f),
            Self::Unix(addr) => addr.fmt(f),
            Self::Hidden(name) => f.write_str(name),
        }
    }
}

impl From<&Addr> for ClientAddr {
    fn from(addr: &Addr) -> Self {
        match addr {
            Addr::Ip(addr) => Self::Ip(addr.ip(), Some(addr.port())),
            Addr::Unix(addr) => Self::Unix(addr.clone()),
        }
    }
}

/// Which proxies are believed, and which fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Forwarding {
    proxies: Networks,
    fields: Fields,
}

/// What the proxies set. Only one is believed: a proxy that sets another passes this one on as the client has sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fields {
    XForwarded,
    Forwarded,
    XRealIp,
}

impl Forwarding {
    /// # Errors
    /// An option makes no sense.
    pub(crate) fn new(proxies: &str, fields: Option<&str>) -> Result<Self> {
        let fields = match fields {
            None | Some("x-forwarded") => Fields::XForwarded,
            Some("forwarded") => Fields::Forwarded,
            Some("x-real-ip") => Fields::XRealIp,
            Some(other) => {
                return Err(Error::InvalidArgument(format!(
                    "forwarded_by is {other:?}: not x-forwarded, forwarded or x-real-ip"
                )));
            }
        };
        let proxies = Networks::parse("trusted_proxies", proxies)?;
        Ok(Self { proxies, fields })
    }

    fn follow(&self, client: &mut Client, headers: &HeaderMap) {
        match self.fields {
            Fields::XRealIp => {
                if let Some(value) = headers.get_all(&REAL_IP).iter().next_back() {
                    client.addr = text_of(value).map_or_else(ClientAddr::unknown, node);
                }
            }
            Fields::XForwarded => {
                for item in from_the_right(headers, &FOR) {
                    client.addr = item.map_or_else(ClientAddr::unknown, node);
                    if !self.trusts(&client.addr) {
                        break;
                    }
                }
                if let Some(Some(proto)) = from_the_right(headers, &PROTO).next() {
                    client.set_scheme(proto);
                }
                if let Some(Some(host)) = from_the_right(headers, &FORWARDED_HOST).next() {
                    client.set_host(host);
                }
            }
            Fields::Forwarded => {
                for item in from_the_right(headers, &FORWARDED) {
                    let is_read = item.is_some_and(|item| client.read(item).is_some());
                    if !is_read {
                        client.addr = ClientAddr::unknown();
                    }
                    if !self.trusts(&client.addr) {
                        break;
                    }
                }
            }
        }
    }

    fn trusts(&self, addr: &ClientAddr) -> bool {
        addr.ip().is_some_and(|ip| self.proxies.contains_ip(ip))
    }
}

impl Client {
    /// `peer`: where the connection comes from.
    pub(crate) fn of(
        peer: &Addr,
        is_secure: bool,
        forwarding: Option<&Forwarding>,
        headers: &HeaderMap,
    ) -> Self {
        let mut client = Self {
            addr: peer.into(),
            scheme: if is_secure { "https" } else { "http" },
            host: headers.get(HOST).and_then(text_of).map(str::to_owned),
        };
        if let Some(forwarding) = forwarding
            && forwarding.proxies.contains(peer)
        {
            forwarding.follow(&mut client, headers);
        }
        client
    }

    fn set_scheme(&mut self, scheme: &str) {
        let is = |names: [&str; 2]| names.iter().any(|name| scheme.eq_ignore_ascii_case(name));
        if is(["http", "ws"]) {
            self.scheme = "http";
        } else if is(["https", "wss"]) {
            self.scheme = "https";
        }
    }

    fn set_host(&mut self, host: &str) {
        if host.parse::<Authority>().is_ok() && !host.contains('@') {
            self.host = Some(host.to_owned());
        }
    }

    /// Reads an element of `Forwarded` (RFC 7239, 4). `None`: it is malformed, or does not say whom the proxy has
    /// forwarded for. Then nothing is changed.
    fn read(&mut self, element: &str) -> Option<()> {
        let (mut addr, mut proto, mut host) = (None, None, None);
        let mut rest = element;
        loop {
            let (name, behind) = rest.split_once('=')?;
            let (value, behind) = value(behind)?;
            let place = match name.trim().to_ascii_lowercase().as_str() {
                "for" => &mut addr,
                "proto" => &mut proto,
                "host" => &mut host,
                name if is_token(name) => &mut None,
                _ => return None,
            };
            if place.replace(value).is_some() {
                return None;
            }
            match behind.trim_start().strip_prefix(';') {
                Some(behind) => rest = behind,
                None if behind.trim().is_empty() => break,
                None => return None,
            }
        }
        self.addr = node(&addr?);
        if let Some(proto) = proto {
            self.set_scheme(&proto);
        }
        if let Some(host) = host {
            self.set_host(&host);
        }
        Some(())
    }
}

/// Reads a value: a token, or a quoted string. Returns what follows, too.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(mut rest) = text.strip_prefix('"') else {
        // Proxies forget the quotes around what has a colon or brackets.
        let end = text.find([';', ' ', '\t']).unwrap_or(text.len());
        let (value, behind) = text.split_at(end);
        let is_value = !value.is_empty() && !value.contains(['"', '\\', '=', ',']);
        return is_value.then(|| (value.to_owned(), behind));
    };
    let mut value = String::new();
    loop {
        let at = rest.find(['"', '\\'])?;
        value.push_str(&rest[..at]);
        let behind = &rest[at + 1..];
        if rest.as_bytes()[at] == b'"' {
            return Some((value, behind));
        }
        let escaped = behind.chars().next()?;
        value.push(escaped);
        rest = &behind[escaped.len_utf8()..];
    }
}

fn is_token(text: &str) -> bool {
    let is_of_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_of_token)
}

/// Whom a proxy has forwarded for: an address with or without a port, or a name (RFC 7239, 6).
fn node(text: &str) -> ClientAddr {
    let of = |ip: IpAddr, port| ClientAddr::Ip(ip.to_canonical(), port);
    if let Ok(ip) = text.parse() {
        return of(ip, None);
    }
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return of(addr.ip(), Some(addr.port()));
    }
    let (name, port) = match text.rsplit_once(':') {
        // The port may be hidden, too.
        Some((name, port)) if is_hidden(port) => (name, Some(port)),
        _ => (text, None),
    };
    let inner = name.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
    if let Some(Ok(ip)) = inner.map(str::parse::<Ipv6Addr>) {
        return of(ip.into(), None);
    }
    if let (Some(_), Ok(ip)) = (port, name.parse::<std::net::Ipv4Addr>()) {
        return of(ip.into(), None);
    }
    if is_hidden(text) {
        return ClientAddr::Hidden(text.to_owned());
    }
    ClientAddr::unknown()
}

/// Whether this is an obfuscated identifier.
fn is_hidden(text: &str) -> bool {
    let is_in_name = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    text.len() > 1 && text.starts_with('_') && text.bytes().all(is_in_name)
}

/// The elements of a list, from the right: first what was added last. `None`: it cannot be read.
///
/// A client may have begun a quoted string and not ended it. That must not swallow what a proxy has added behind it, so
/// the commas are looked for from the right.
fn from_the_right<'a>(
    headers: &'a HeaderMap,
    name: &'a HeaderName,
) -> impl Iterator<Item = Option<&'a str>> {
    let fields = headers.get_all(name).iter().rev();
    fields.flat_map(|field| {
        let mut rest = Some(text_of(field));
        std::iter::from_fn(move || {
            let Some(text) = rest? else {
                rest = None;
                return Some(None);
            };
            if let Some(at) = last_comma(text) {
                rest = Some(Some(&text[..at]));
                Some(Some(text[at + 1..].trim()))
            } else {
                rest = None;
                Some(Some(text.trim()))
            }
        })
    })
}

/// The last comma that is in no quoted string.
fn last_comma(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let is_escaped = |at: usize| {
        let before = bytes[..at].iter().rev();
        before.take_while(|byte| **byte == b'\\').count() % 2 == 1
    };
    let mut is_quoted = false;
    (0..bytes.len()).rev().find(|at| match bytes[*at] {
        b'"' if !is_escaped(*at) => {
            is_quoted = !is_quoted;
            false
        }
        b',' => !is_quoted,
        _ => false,
    })
}

fn text_of(value: &HeaderValue) -> Option<&str> {
    value.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROXIES: &str = "10.0.0.0/8, 2001:db8::/32";

    fn client(fields: &str, headers: &[(&str, &str)]) -> (String, &'static str, Option<String>) {
        client_from("10.0.0.1:1000", fields, headers)
    }

    fn client_from(
        peer: &str,
        fields: &str,
        headers: &[(&str, &str)],
    ) -> (String, &'static str, Option<String>) {
        let forwarding = Forwarding::new(PROXIES, Some(fields)).unwrap();
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| {
                let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
                (name.parse::<HeaderName>().unwrap(), value)
            })
            .collect();
        let peer = peer.parse::<SocketAddr>().unwrap().into();
        let Client { addr, scheme, host } = Client::of(&peer, false, Some(&forwarding), &headers);
        (addr.to_string(), scheme, host)
    }

    fn addr(fields: &str, name: &str, value: &str) -> String {
        client(fields, &[(name, value)]).0
    }

    #[test]
    fn the_rightmost_address_that_is_not_trusted_is_the_client() {
        for (value, expected) in [
            ("192.0.2.1", "192.0.2.1"),
            ("1.1.1.1, 192.0.2.1", "192.0.2.1"),
            ("1.1.1.1, 192.0.2.1, 10.1.1.1", "192.0.2.1"),
            ("192.0.2.1,10.1.1.1 ,\t10.1.1.2", "192.0.2.1"),
            // All are trusted: the first has asked.
            ("10.3.3.3, 10.1.1.1", "10.3.3.3"),
            ("192.0.2.1:5000", "192.0.2.1:5000"),
            ("2001:db9::1", "2001:db9::1"),
            ("[2001:db9::1]", "2001:db9::1"),
            ("[2001:db9::1]:5000", "[2001:db9::1]:5000"),
            ("2001:db9::1, 2001:db8::7", "2001:db9::1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("192.0.2.1, ::ffff:10.0.0.9", "192.0.2.1"),
            ("unknown", "unknown"),
            ("192.0.2.1, unknown", "unknown"),
            ("192.0.2.1, nonsense", "unknown"),
            ("192.0.2.1,", "unknown"),
            ("", "unknown"),
            ("\u{e4}", "unknown"),
        ] {
            assert_eq!(
                addr("x-forwarded", "x-forwarded-for", value),
                expected,
                "{value}"
            );
        }
        let lines = [
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-for", "10.0.0.2"),
        ];
        assert_eq!(client("x-forwarded", &lines).0, "192.0.2.1");
        assert_eq!(client("x-forwarded", &[]).0, "10.0.0.1:1000");
    }

    #[test]
    fn who_is_not_trusted_is_not_believed() {
        let headers = [
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "b"),
            ("x-real-ip", "192.0.2.1"),
            ("forwarded", "for=192.0.2.1;proto=https;host=b"),
            ("host", "a"),
        ];
        for fields in ["x-forwarded", "forwarded", "x-real-ip"] {
            let found = client_from("198.51.100.1:7", fields, &headers);
            assert_eq!(found, ("198.51.100.1:7".into(), "http", Some("a".into())));
        }
        let found = client("x-forwarded", &headers);
        assert_eq!(found, ("192.0.2.1".into(), "https", Some("b".into())));
        assert_eq!(client("forwarded", &headers), found);
        let found = client("x-real-ip", &headers);
        assert_eq!(found, ("192.0.2.1".into(), "http", Some("a".into())));
    }

    #[test]
    fn what_another_kind_of_proxy_would_set_is_not_believed() {
        let sent = [("forwarded", "for=1.1.1.1"), ("x-real-ip", "1.1.1.1")];
        assert_eq!(client("x-forwarded", &sent).0, "10.0.0.1:1000");
        assert_eq!(
            addr("forwarded", "x-forwarded-for", "1.1.1.1"),
            "10.0.0.1:1000"
        );
        assert_eq!(
            addr("x-real-ip", "x-forwarded-for", "1.1.1.1"),
            "10.0.0.1:1000"
        );
    }

    #[test]
    fn what_rfc_7239_allows_is_read() {
        for (value, expected) in [
            ("for=192.0.2.1", "192.0.2.1"),
            ("For=192.0.2.1", "192.0.2.1"),
            ("for=\"192.0.2.1\"", "192.0.2.1"),
            ("for=\"192.0.2.1:4711\"", "192.0.2.1:4711"),
            ("for=192.0.2.1:4711", "192.0.2.1:4711"),
            ("for=\"192.0.2.1:_port\"", "192.0.2.1"),
            ("for=\"[2001:db9::1]\"", "2001:db9::1"),
            ("for=\"[2001:db9::1]:4711\"", "[2001:db9::1]:4711"),
            ("for=\"[2001:db9::1]:_x\"", "2001:db9::1"),
            ("for=\"[2001:db8::1]\", for=10.1.1.1", "2001:db8::1"),
            (
                "for=192.0.2.1, for=\"[2001:db8::1]:80\"; proto=http",
                "192.0.2.1",
            ),
            ("for=_hidden", "_hidden"),
            ("for=192.0.2.1, for=_SEVKISEK", "_SEVKISEK"),
            ("for=unknown", "unknown"),
            ("for=\"192\\.0.2.1\"", "192.0.2.1"),
            (
                "by=10.0.0.1;for=192.0.2.1;secret=\"a,b;c=\\\"d\"",
                "192.0.2.1",
            ),
            ("for=192.0.2.1 ; proto=https", "192.0.2.1"),
            ("for=1.1.1.1, for=192.0.2.1", "192.0.2.1"),
            // What a client has sent does not matter, where a proxy has added more.
            ("nonsense, for=192.0.2.1", "192.0.2.1"),
            ("for=\"1.1.1.1, for=192.0.2.1", "192.0.2.1"),
            ("for=\"1.1.1.1\\, for=\"[2001:db9::1]\"", "2001:db9::1"),
            // What a proxy that is trusted says makes no sense, or does not say whom it has forwarded for.
            ("nonsense", "unknown"),
            ("proto=https", "unknown"),
            ("for=", "unknown"),
            ("for=192.0.2.1;", "unknown"),
            ("for=192.0.2.1;for=192.0.2.2", "unknown"),
            ("for=\"192.0.2.1", "unknown"),
            ("for=\"192.0.2.1\"x", "unknown"),
            ("for = 192.0.2.1", "unknown"),
            ("for=192.0.2.1 192.0.2.2", "unknown"),
            ("f r=1;for=192.0.2.1", "unknown"),
            ("", "unknown"),
        ] {
            assert_eq!(addr("forwarded", "forwarded", value), expected, "{value}");
        }
    }

    #[test]
    fn scheme_and_host_are_those_of_the_first_proxy_that_is_believed() {
        let forwarded = |value| {
            let (_, scheme, host) = client("forwarded", &[("forwarded", value), ("host", "a")]);
            (scheme, host.unwrap())
        };
        for (value, scheme, host) in [
            (
                "for=192.0.2.1;proto=HTTPS;host=\"b:8\", for=10.0.0.2;proto=http;host=c",
                "https",
                "b:8",
            ),
            (
                "for=1.1.1.1;proto=https;host=b, for=192.0.2.1;proto=http",
                "http",
                "a",
            ),
            (
                "for=192.0.2.1;proto=https;host=b, for=10.0.0.2",
                "https",
                "b",
            ),
            ("for=192.0.2.1;proto=gopher;host=\"b c\"", "http", "a"),
            ("for=192.0.2.1;host=\"me@b\"", "http", "a"),
        ] {
            assert_eq!(forwarded(value), (scheme, host.to_owned()), "{value}");
        }
        let headers = [
            ("x-forwarded-proto", "http, wss"),
            ("x-forwarded-host", "evil, b"),
            ("host", "a"),
        ];
        let (_, scheme, host) = client("x-forwarded", &headers);
        assert_eq!((scheme, host.as_deref()), ("https", Some("b")));
    }

    #[test]
    fn the_last_field_is_the_one_that_the_proxy_has_added() {
        let headers = [("x-real-ip", "1.1.1.1"), ("x-real-ip", "192.0.2.1")];
        assert_eq!(client("x-real-ip", &headers).0, "192.0.2.1");
        assert_eq!(addr("x-real-ip", "x-real-ip", "nonsense"), "unknown");
    }

    #[test]
    fn fields_that_are_not_known_are_refused() {
        let why = Forwarding::new("::1", Some("X-Forwarded")).unwrap_err();
        assert!(
            why.to_string()
                .starts_with("forwarded_by is \"X-Forwarded\"")
        );
        let why = Forwarding::new("here", None).unwrap_err().to_string();
        assert!(why.starts_with("trusted_proxies: \"here\""), "{why}");
    }
}
