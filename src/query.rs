//! The query of a target: its pairs, and how they are decoded.

use std::borrow::Cow;

/// A query: pairs `name=value` with a `&` between them, in the format in which browsers send forms. Bytes are encoded
/// as `%20`, spaces also as `+`.
///
/// The body of a form (`application/x-www-form-urlencoded`) has the same format. No query is an error: a piece without
/// `=` is a name with an empty value, empty pieces are ignored, and a `%` without two hexadecimal digits after it
/// stands for itself.
///
/// ```
/// let query = httpdown::Query::new("name=J%C3%BCrgen+K&tag=a&tag=b&debug");
/// assert_eq!(query.get("name").as_deref(), Some("Jürgen K"));
/// assert_eq!(query.get("tag").as_deref(), Some("a")); // the first
/// assert_eq!(query.get("debug").as_deref(), Some(""));
/// assert_eq!(query.get("other"), None);
/// assert_eq!(query.pairs().count(), 4);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query<'a>(&'a [u8]);

impl<'a> Query<'a> {
    /// Makes a query from the text that came, without the question mark.
    #[must_use]
    pub fn new<T: AsRef<[u8]> + ?Sized>(encoded: &'a T) -> Self {
        Self(encoded.as_ref())
    }

    /// The decoded value of the first pair with this name. Names are decoded before they are compared. Bytes that are
    /// not UTF-8 are replaced by U+FFFD; [`Query::get_bytes`] keeps them.
    #[must_use]
    pub fn get(self, name: &str) -> Option<Cow<'a, str>> {
        self.get_bytes(name.as_bytes()).map(text)
    }

    /// Like [`Query::get`], byte for byte.
    #[must_use]
    pub fn get_bytes(self, name: &[u8]) -> Option<Cow<'a, [u8]>> {
        let mut pairs = self.pairs();
        pairs.find_map(|(found, value)| (*found == *name).then_some(value))
    }

    /// All pairs, decoded, in their order.
    #[must_use]
    pub fn pairs(self) -> QueryPairs<'a> {
        QueryPairs { rest: self.0 }
    }
}

/// The pairs of a [`Query`], decoded: names and values, which need not be UTF-8.
#[derive(Clone, Debug)]
pub struct QueryPairs<'a> {
    rest: &'a [u8],
}

impl<'a> QueryPairs<'a> {
    /// The next pair, not decoded.
    pub(crate) fn next_encoded(&mut self) -> Option<(&'a [u8], &'a [u8])> {
        while !self.rest.is_empty() {
            let (piece, rest) = split(self.rest, b'&');
            self.rest = rest;
            if !piece.is_empty() {
                return Some(split(piece, b'='));
            }
        }
        None
    }

    /// The pairs that have not been asked for yet, as they are in the query.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

impl<'a> Iterator for QueryPairs<'a> {
    type Item = (Cow<'a, [u8]>, Cow<'a, [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        let (name, value) = self.next_encoded()?;
        Some((decode(name), decode(value)))
    }
}

/// The part before the first `at`, and the part after it. If there is no `at`: the whole text, and an empty rest.
fn split(text: &[u8], at: u8) -> (&[u8], &[u8]) {
    let found = memchr::memchr(at, text).unwrap_or(text.len());
    let (before, behind) = text.split_at(found);
    (before, behind.get(1..).unwrap_or(behind))
}

/// A name or a value of a query, decoded.
pub(crate) fn decode(encoded: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr(b'+', encoded).is_none() {
        return percent_decode(encoded);
    }
    let space = |byte: &u8| if *byte == b'+' { b' ' } else { *byte };
    let encoded: Vec<u8> = encoded.iter().map(space).collect();
    Cow::Owned(percent_decode(&encoded).into_owned())
}

/// Replaces each `%` with two hexadecimal digits by the byte that they mean. A `+`, and a `%` without digits, stay.
/// This function is for a part of a path. Split the path at its slashes before you decode: a decoded slash does not
/// separate parts.
#[must_use]
pub fn percent_decode(encoded: &[u8]) -> Cow<'_, [u8]> {
    percent_encoding::percent_decode(encoded).into()
}

/// Replaces bytes that are not UTF-8.
fn text(bytes: Cow<'_, [u8]>) -> Cow<'_, str> {
    match bytes {
        Cow::Borrowed(bytes) => String::from_utf8_lossy(bytes),
        Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
    }
}
