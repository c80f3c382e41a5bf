//! Which peers are believed: a list of networks.

use std::net::IpAddr;
use std::sync::Arc;

use crate::addr::{Addr, UNIX};
use crate::error::{Error, Result};

/// A list of networks, and perhaps all clients of Unix sockets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Networks {
    networks: Arc<[Network]>,
    unix: bool,
}

/// The addresses that begin with so many of these bits. IPv4 is mapped into IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    bits: u128,
    prefix: u32,
}

impl Networks {
    /// Reads addresses and networks, with commas between them: `10.0.0.0/8, ::1, unix:`.
    ///
    /// # Errors
    /// The text is something else. `name` is the option's.
    pub(crate) fn parse(name: &str, text: &str) -> Result<Self> {
        let (mut networks, mut unix) = (Vec::new(), false);
        for item in text.split(',').map(str::trim) {
            if item == UNIX {
                unix = true;
                continue;
            }
            let network = Network::parse(item)
                .map_err(|why| Error::InvalidArgument(format!("{name}: {item:?} {why}")))?;
            networks.push(network);
        }
        Ok(Self {
            networks: networks.into(),
            unix,
        })
    }

    pub(crate) fn contains(&self, addr: &Addr) -> bool {
        match addr {
            Addr::Ip(addr) => self.contains_ip(addr.ip()),
            Addr::Unix(_) => self.unix,
        }
    }

    pub(crate) fn contains_ip(&self, ip: IpAddr) -> bool {
        let bits = as_ipv6(ip);
        let mut networks = self.networks.iter();
        networks.any(|network| network.contains(bits))
    }
}

impl Network {
    fn parse(text: &str) -> std::result::Result<Self, &'static str> {
        let (ip, prefix) = match text.split_once('/') {
            Some((ip, prefix)) => (ip, Some(prefix)),
            None => (text, None),
        };
        let ip: IpAddr = ip.parse().map_err(|_| "is no address, nor a network")?;
        let least = if ip.is_ipv4() { 96 } else { 0 };
        let prefix = match prefix {
            None => 128,
            Some(text) => {
                let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
                let prefix = text.parse::<u32>().ok().filter(|_| digits);
                let prefix = prefix.map(|prefix| prefix.saturating_add(least));
                prefix
                    .filter(|prefix| *prefix <= 128)
                    .ok_or("has no such prefix")?
            }
        };
        let network = Self {
            bits: as_ipv6(ip),
            prefix,
        };
        if network.bits & !network.mask() != 0 {
            return Err("has bits behind its prefix");
        }
        Ok(network)
    }

    fn contains(self, bits: u128) -> bool {
        (bits ^ self.bits) & self.mask() == 0
    }

    fn mask(self) -> u128 {
        u128::MAX.checked_shl(128 - self.prefix).unwrap_or(0)
    }
}

fn as_ipv6(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_says_who_is_in_it() {
        let list = "10.0.0.0/8,192.0.2.1 , 2001:db8::/32,::1,\t198.51.100.128/25";
        let list = Networks::parse("x", list).unwrap();
        for (ip, is_in) in [
            ("10.255.0.1", true),
            ("11.0.0.0", false),
            ("192.0.2.1", true),
            ("192.0.2.2", false),
            ("::ffff:192.0.2.1", true),
            ("198.51.100.127", false),
            ("198.51.100.128", true),
            ("2001:db8:ffff::", true),
            ("2001:db9::", false),
            ("::1", true),
            ("::2", false),
            // The last 32 bits are those of a network of IPv4.
            ("::10.0.0.1", false),
        ] {
            assert_eq!(list.contains_ip(ip.parse().unwrap()), is_in, "{ip}");
        }
        assert!(!list.contains(&Addr::of_path("/x".as_ref())));
    }

    #[test]
    fn everybody_can_be_in_it() {
        let v4 = Networks::parse("x", "0.0.0.0/0").unwrap();
        assert!(v4.contains_ip("192.0.2.1".parse().unwrap()));
        assert!(!v4.contains_ip("::1".parse().unwrap()));
        let all = Networks::parse("x", "::/0,unix:").unwrap();
        assert!(all.contains_ip("192.0.2.1".parse().unwrap()));
        assert!(all.contains_ip("::1".parse().unwrap()));
        assert!(all.contains(&Addr::of_path("/x".as_ref())));
        assert!(!Networks::default().contains(&Addr::of_path("/x".as_ref())));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for text in [
            "",
            ",",
            "10.0.0.0/8,",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10/8",
            "::1/129",
            "::1/127/1",
            "2001:db8::1/32",
            "localhost",
            "unix:/x",
            "10.0.0.0 /8",
            "*",
        ] {
            let why = Networks::parse("some_option", text)
                .unwrap_err()
                .to_string();
            assert!(why.starts_with("some_option: "), "{text}: {why}");
        }
    }
}
