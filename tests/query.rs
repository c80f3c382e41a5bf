//! Queries: in a request, and against another implementation.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use std::borrow::Cow;

use common::{Client, addr, stop};
use http::Response;
use httpdown::{Dispatch, Exchange, Query, percent_decode};
use proptest::prelude::*;

fn texts(query: &str) -> Vec<(String, String)> {
    let text = |bytes: Cow<'_, [u8]>| String::from_utf8_lossy(&bytes).into_owned();
    let pairs = Query::new(query).pairs();
    pairs
        .map(|(name, value)| (text(name), text(value)))
        .collect()
}

proptest! {
    #[test]
    fn pairs_are_those_of_form_urlencoded(query in "[ab=&%+0-9A-F\\x00é;?/]{0,40}") {
        let expected: Vec<_> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        prop_assert_eq!(texts(&query), expected.clone());
        for (name, _) in &expected {
            let first = expected.iter().find(|(other, _)| other == name).map(|(_, value)| value);
            // A name that is not UTF-8 is not to be asked for as a text.
            if !name.contains('\u{fffd}') {
                let found = Query::new(&query).get(name);
                prop_assert_eq!(found.as_deref(), first.map(String::as_str));
            }
        }
    }

    #[test]
    fn what_is_encoded_comes_back(pairs: Vec<(Vec<u8>, Vec<u8>)>) {
        let encode = |bytes: &[u8]| form_urlencoded::byte_serialize(bytes).collect::<String>();
        let encoded: Vec<_> = pairs.iter().map(|(n, v)| format!("{}={}", encode(n), encode(v))).collect();
        let encoded = encoded.join("&");
        let decoded: Vec<_> = Query::new(&encoded)
            .pairs()
            .map(|(name, value)| (name.into_owned(), value.into_owned()))
            .collect();
        prop_assert_eq!(decoded, pairs);
    }
}

#[test]
fn odd_queries_have_a_meaning() {
    let query = Query::new("a=1&&=empty&b&%61=2&c=%&d=%2&e=%zz&f=%00x&g=%FF&h=+%2B&i=x=y;z&");
    for (name, value) in [
        ("a", "1"),
        ("", "empty"),
        ("b", ""),
        ("c", "%"),
        ("d", "%2"),
        ("e", "%zz"),
        ("f", "\0x"),
        ("g", "\u{fffd}"),
        ("h", " +"),
        ("i", "x=y;z"),
    ] {
        assert_eq!(query.get(name).as_deref(), Some(value), "{name}");
    }
    assert_eq!(query.get_bytes(b"g").as_deref(), Some(&b"\xff"[..]));
    assert_eq!(query.get("j"), None);
    let all: Vec<_> = query.pairs().filter(|(name, _)| **name == *b"a").collect();
    assert_eq!(all.len(), 2);
    assert_eq!(Query::new("").pairs().next(), None);
    assert_eq!(*percent_decode(b"/a%20b+c%2"), *b"/a b+c%2");
}

#[test]
fn a_request_has_its_query() {
    let handler = |exchange: Exchange| {
        let query = exchange.query();
        let text = format!("{:?} {}", query.get("x"), query.pairs().count());
        exchange.reply(Response::new(text.into())).unwrap();
    };
    let server = httpdown::Server::builder()
        .handle(common::listener(), Dispatch::default(), handler)
        .unwrap();
    for (target, expected) in [
        ("/", "None 0"),
        ("/?", "None 0"),
        ("/?y=1&x=a%20b+c", "Some(\"a b c\") 2"),
        ("http://test/?x", "Some(\"\") 1"),
    ] {
        let mut client = Client::get(addr(&server), target);
        assert_eq!(client.answer().text(), expected, "{target}");
    }
    stop(&server).unwrap();
}
