//! Which parts of a file a client asks for: the field `Range` (RFC 9110, 14).

use std::ops::Range;

/// A field with more ranges than this is ignored. Clients that go on with a download ask for one range, and viewers of
/// PDF files for a few.
const MOST: usize = 16;

/// What is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Everything: the field is ignored.
    Whole,
    /// These parts, in this order; at least one, and none is empty.
    Parts(Vec<Range<u64>>),
    /// Nothing of the file: all ranges lie behind its end.
    Nothing,
}

/// The parts of a file of `size` bytes that a `Range` field asks for.
///
/// A field that is malformed, or has another unit than bytes, is ignored, as the RFC allows and other servers do. The
/// same holds for a field that makes more work than the whole file would: too many ranges, or more bytes than the file
/// has, which only ranges that overlap can ask for (RFC 9110, 17.15).
pub(crate) fn wanted(field: &[u8], size: u64) -> Wanted {
    let Some(specs) = specs(field) else {
        return Wanted::Whole;
    };
    let mut parts = Vec::new();
    let (mut count, mut sum) = (0, 0_u64);
    for spec in specs {
        // An empty element of a list means nothing (RFC 9110, 5.6.1).
        if spec.is_empty() {
            continue;
        }
        let Some(range) = range(spec, size) else {
            return Wanted::Whole;
        };
        count += 1;
        sum = sum.saturating_add(range.end - range.start);
        if !range.is_empty() {
            parts.push(range);
        }
        if count > MOST || sum > size {
            return Wanted::Whole;
        }
    }
    match parts.len() {
        // An empty file has no part that could be named, but it can be sent.
        0 if count == 0 || size == 0 => Wanted::Whole,
        0 => Wanted::Nothing,
        _ => Wanted::Parts(parts),
    }
}

/// The elements of the list behind `bytes=`, without white space around them.
fn specs(field: &[u8]) -> Option<impl Iterator<Item = &[u8]>> {
    let (unit, list) = field.split_at_checked(6)?;
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    unit.eq_ignore_ascii_case(b"bytes=").then(|| {
        list.split(|byte| *byte == b',').map(move |spec| {
            let start = spec.iter().position(|byte| !is_blank(byte));
            let end = spec.iter().rposition(|byte| !is_blank(byte));
            start
                .zip(end)
                .map_or(&[][..], |(start, end)| &spec[start..=end])
        })
    })
}

/// One element: `first-last`, `first-` or `-length`. `None` if it is malformed, and an empty range if the file has none
/// of these bytes.
fn range(spec: &[u8], size: u64) -> Option<Range<u64>> {
    let dash = spec.iter().position(|byte| *byte == b'-')?;
    let (first, last) = (&spec[..dash], &spec[dash + 1..]);
    match (first.is_empty(), last.is_empty()) {
        (true, true) => None,
        (true, false) => Some(size.saturating_sub(number(last)?)..size),
        (false, true) => Some(number(first)?.min(size)..size),
        (false, false) => {
            let (first, last) = (number(first)?, number(last)?);
            let end = last.saturating_add(1).min(size);
            (first <= last).then(|| first.min(end)..end)
        }
    }
}

/// A number of digits only. A number that is too large for us is larger than any file.
fn number(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0_u64, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        Some(number.saturating_mul(10).saturating_add(digit))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Their beginnings and ends.
    fn parts(parts: &[(u64, u64)]) -> Wanted {
        Wanted::Parts(parts.iter().map(|(start, end)| *start..*end).collect())
    }

    #[test]
    fn the_examples_of_the_rfc() {
        for (field, expected) in [
            ("bytes=0-499", parts(&[(0, 500)])),
            ("bytes=500-999", parts(&[(500, 1000)])),
            ("bytes=-500", parts(&[(9_500, 10_000)])),
            ("bytes=9500-", parts(&[(9_500, 10_000)])),
            ("bytes=0-0,-1", parts(&[(0, 1), (9_999, 10_000)])),
            ("bytes=500-600,601-999", parts(&[(500, 601), (601, 1000)])),
            (
                "bytes= 0-999, 4500-5499, -1000",
                parts(&[(0, 1000), (4500, 5500), (9000, 10_000)]),
            ),
            ("bytes=500-700,601-999", parts(&[(500, 701), (601, 1000)])),
            // The end of the file is the end of the range.
            ("bytes=9999-20000", parts(&[(9_999, 10_000)])),
            ("bytes=-20000", parts(&[(0, 10_000)])),
            ("bytes=0-18446744073709551615", parts(&[(0, 10_000)])),
            ("bytes=0-99999999999999999999", parts(&[(0, 10_000)])),
            // What lies behind the end is left out, if something else does not.
            ("bytes=10000-,0-0", parts(&[(0, 1)])),
            ("bytes=10000-", Wanted::Nothing),
            ("bytes=10000-10001,-0", Wanted::Nothing),
            ("bytes=99999999999999999999-", Wanted::Nothing),
            ("BYTES=0-0", parts(&[(0, 1)])),
            ("bytes=,,0-0 ,\t", parts(&[(0, 1)])),
        ] {
            assert_eq!(wanted(field.as_bytes(), 10_000), expected, "{field}");
        }
    }

    #[test]
    fn what_is_malformed_or_excessive_is_ignored() {
        for field in [
            "",
            "bytes",
            "bytes=",
            "bytes=,",
            "bytes=-",
            "bytes=a-b",
            "bytes=1",
            "bytes=1-0",
            "bytes=0-0,x",
            "bytes=0 - 1",
            "bytes=+1-2",
            "bytes=--1",
            "bytes=0-1-2",
            "bytes 0-1",
            "lines=0-1",
            "bytes =0-1",
            "bytes=0-0;1-1",
            // More bytes than there are.
            "bytes=0-,0-0",
            "bytes=0-,0-,0-",
        ] {
            assert_eq!(wanted(field.as_bytes(), 10_000), Wanted::Whole, "{field}");
        }
        let many = |count| format!("bytes={}", vec!["0-0"; count].join(","));
        assert_eq!(wanted(many(MOST + 1).as_bytes(), 10_000), Wanted::Whole);
        assert!(matches!(
            wanted(many(MOST).as_bytes(), 10_000),
            Wanted::Parts(_)
        ));
        // Those behind the end count, too.
        let behind = format!("bytes=0-0{}", ",20000-".repeat(MOST));
        assert_eq!(wanted(behind.as_bytes(), 10_000), Wanted::Whole);
        assert_eq!(wanted(b"bytes=0-0", 0), Wanted::Whole);
        assert_eq!(wanted(b"bytes=-5", 0), Wanted::Whole);
    }

    /// An element, and the bytes that it means in a file of that size, byte by byte.
    fn element() -> impl Strategy<Value = (Option<u64>, Option<u64>)> {
        (
            proptest::option::of(0..40_u64),
            proptest::option::of(0..40_u64),
        )
    }

    fn meant((first, last): (Option<u64>, Option<u64>), size: u64) -> Option<Vec<u64>> {
        let bytes = 0..size;
        match (first, last) {
            (None, None) => None,
            (Some(first), Some(last)) if first > last => None,
            (Some(first), last) => Some(
                bytes
                    .filter(|byte| *byte >= first && last.is_none_or(|last| *byte <= last))
                    .collect(),
            ),
            (None, Some(length)) => Some(bytes.filter(|byte| size - byte <= length).collect()),
        }
    }

    proptest! {
        #[test]
        fn ranges_are_those_that_were_meant(
            list in prop::collection::vec(element(), 1..6),
            size in 0..50_u64,
        ) {
            let text = |number: Option<u64>| number.map_or(String::new(), |number| number.to_string());
            let all = list.iter().map(|(first, last)| format!("{}-{}", text(*first), text(*last)));
            let field = format!("bytes={}", all.collect::<Vec<_>>().join(", "));
            let sets: Option<Vec<_>> = list.iter().map(|spec| meant(*spec, size)).collect();
            let expected = match sets {
                None => Wanted::Whole,
                Some(sets) if sets.iter().map(Vec::len).sum::<usize>() as u64 > size => Wanted::Whole,
                Some(_) if size == 0 => Wanted::Whole,
                Some(sets) => {
                    let parts: Vec<_> = sets
                        .iter()
                        .filter_map(|set| Some(*set.first()?..set.last()? + 1))
                        .collect();
                    if parts.is_empty() { Wanted::Nothing } else { Wanted::Parts(parts) }
                }
            };
            prop_assert_eq!(wanted(field.as_bytes(), size), expected, "{}", field);
        }

        #[test]
        fn whatever_comes_the_parts_lie_in_the_file(
            field in prop::collection::vec(prop_oneof![
                Just(b'-'), Just(b','), Just(b' '), b'0'..=b'9', any::<u8>()
            ], 0..40),
            size in any::<u64>(),
        ) {
            let field = [b"bytes=", &field[..]].concat();
            if let Wanted::Parts(parts) = wanted(&field, size) {
                prop_assert!(!parts.is_empty() && parts.len() <= MOST);
                prop_assert!(parts.iter().all(|part| part.start < part.end && part.end <= size));
                let sum: u128 = parts.iter().map(|part| u128::from(part.end - part.start)).sum();
                prop_assert!(sum <= u128::from(size));
            }
        }
    }
}
