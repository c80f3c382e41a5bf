//! The C interface: a thin layer over the Rust interface.
//!
//! The conventions are written once, in the preface of `include/httpdown.h` (its source is `cbindgen.toml`). Each
//! function here turns its arguments into Rust types, makes one call, and turns the result into a status. Code that
//! does more belongs to the core. The `///` comments are the C reference.
#![allow(unsafe_code, reason = "this is where C comes in")]
#![allow(
    non_camel_case_types,
    reason = "types have the names that they have in C"
)]
#![allow(
    clippy::missing_safety_doc,
    reason = "the header's preface says what every pointer must be"
)]
#![allow(
    clippy::doc_markdown,
    reason = "the comments are the header's, where backticks would be noise"
)]
#![allow(
    clippy::enum_glob_use,
    reason = "C's enumerators carry their type in their names"
)]
#![allow(
    unreachable_pub,
    reason = "what C can reach, Rust cannot: the functions are exported by name"
)]

mod boundary;
mod callbacks;
mod clock;
mod files;
mod last_error;
mod options;
mod query;
mod ready;
mod record;
mod request;
mod restart;
mod server;
mod stream;
mod table;
mod tls;
#[cfg(feature = "tls")]
mod tls_settings;
mod types;
