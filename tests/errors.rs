//! What errors tell.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a helper that fails fails its test"
)]

mod common;

use std::error::Error as _;
use std::io;

use common::*;
use httpdown::{Dispatch, Error, Exchange, Listener};

#[test]
fn an_error_of_the_system_is_found_among_the_sources_and_told_once() {
    let taken = listener();
    let addr = taken.local_addr().to_string();
    let error = Listener::bind(&addr).unwrap_err();
    let source = error.source().unwrap();
    let found = source.downcast_ref::<io::Error>().unwrap();
    assert_eq!(found.kind(), io::ErrorKind::AddrInUse);
    assert_eq!(error.to_string(), format!("listening on {addr}"));
    assert_eq!(
        format!("{error:#}"),
        format!("listening on {addr}: {found}")
    );
}

#[test]
fn who_is_told_that_requests_were_cut_is_told_how_many() {
    let gate = Gate::new();
    let _open_at_end = gate.open_at_end();
    let (passes, begun) = (gate.clone(), Journal::new());
    let begins = begun.clone();
    let server = builder()
        .handle(
            listener(),
            Dispatch::default(),
            move |exchange: Exchange| {
                begins.write(());
                let killed = exchange.cancellation().wait_until(None);
                begins.write(());
                passes.pass();
                assert!(killed.unwrap().report().is_none());
            },
        )
        .unwrap();
    let _client = Client::get(addr(&server), "/");
    begun.wait_for_count(1);
    server.kill_begin();
    begun.wait_for_count(2);
    gate.open();
    for result in [
        wait(&server),
        server.outcome().unwrap().map(|()| server.report()),
    ] {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Killed(_)), "{error:?}");
        let report = *error.report().unwrap();
        assert_eq!((report.requests, report.killed), (1, 1));
        assert_eq!(report, server.report());
    }
    assert!(Listener::bind("nowhere").unwrap_err().report().is_none());
}
