//! What tells one state of a file from another, and the requests that depend on it (RFC 9110, 8.8 and 13).

use std::time::{Duration, SystemTime};

use http::header::{
    HeaderMap, HeaderName, HeaderValue, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
    IF_UNMODIFIED_SINCE,
};
use httpdate::parse_http_date;

/// A file that was changed less than this ago may change again without another time of change, because the clocks of
/// file systems go in steps: of 2 s on FAT, which is the longest.
const STEP: Duration = Duration::from_secs(2);

/// The present state of a file, as clients know it.
#[derive(Clone, Debug)]
pub(crate) struct Validators {
    /// An entity tag, strong or weak.
    pub(crate) etag: HeaderValue,
    /// When the file was changed last, in whole seconds. `None` if that cannot be told to clients.
    pub(crate) modified: Option<SystemTime>,
    /// Whether nothing else can have the same time of change.
    pub(crate) is_settled: bool,
}

/// What is to be done with a GET or HEAD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Answer it. A `Range` is meant for this state of the file.
    Go,
    /// Answer it with the whole file.
    GoWhole,
    /// 304
    NotModified,
    /// 412
    Failed,
}

impl Validators {
    /// The validators of a file with these data, of which `inode` and `size` are the tag's alone. The tag is strong if
    /// the file has not been changed for some time.
    pub(crate) fn new(inode: u64, size: u64, changed: Option<SystemTime>, now: SystemTime) -> Self {
        let since_epoch = changed.map(|changed| changed.duration_since(SystemTime::UNIX_EPOCH));
        let is_settled = changed.is_some_and(|changed| is_settled(changed, now));
        let nanos = match &since_epoch {
            Some(Ok(since)) => since.as_nanos(),
            Some(Err(before)) => !before.duration().as_nanos(),
            None => 0,
        };
        let mix = mix(&[inode.into(), nanos]);
        let weak = if is_settled { "" } else { "W/" };
        let etag = format!("{weak}\"{size:x}-{mix:016x}\"");
        Self {
            etag: HeaderValue::try_from(etag).unwrap_or(HeaderValue::from_static("W/\"\"")),
            // A client must not be told a time in the future (RFC 9110, 8.8.2.1).
            modified: since_epoch
                .and_then(Result::ok)
                .map(|since| SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs()))
                .filter(|modified| *modified <= now),
            is_settled,
        }
    }

    /// What a GET or HEAD with these fields asks for, in the order of RFC 9110, 13.2.2.
    pub(crate) fn judge(&self, fields: &HeaderMap) -> Verdict {
        let date = |name: HeaderName| {
            let date = parse_http_date(single(fields, name)?.to_str().ok()?).ok()?;
            Some((self.modified?, date))
        };
        if fields.contains_key(IF_MATCH) {
            if !self.is_among(fields, IF_MATCH, strong_eq) {
                return Verdict::Failed;
            }
        } else if let Some((modified, date)) = date(IF_UNMODIFIED_SINCE)
            && modified > date
        {
            return Verdict::Failed;
        }
        if fields.contains_key(IF_NONE_MATCH) {
            if self.is_among(fields, IF_NONE_MATCH, weak_eq) {
                return Verdict::NotModified;
            }
        } else if let Some((modified, date)) = date(IF_MODIFIED_SINCE)
            && modified <= date
        {
            return Verdict::NotModified;
        }
        if fields.contains_key(IF_RANGE) && !self.is_same(single(fields, IF_RANGE)) {
            return Verdict::GoWhole;
        }
        Verdict::Go
    }

    /// Whether the list of this field is `*`, or has our tag.
    fn is_among(
        &self,
        fields: &HeaderMap,
        name: HeaderName,
        equal: impl Fn(&[u8], &[u8]) -> bool,
    ) -> bool {
        let lists = fields.get_all(name);
        lists.iter().any(|list| {
            list.as_bytes().trim_ascii() == b"*"
                || tags(list.as_bytes()).any(|tag| equal(tag, self.etag.as_bytes()))
        })
    }

    /// Whether the value of `If-Range` means exactly this state.
    fn is_same(&self, value: Option<&HeaderValue>) -> bool {
        let Some(value) = value else { return false };
        let text = value.as_bytes();
        if text.starts_with(b"\"") || text.starts_with(b"W/") {
            return strong_eq(text, self.etag.as_bytes());
        }
        let date = value
            .to_str()
            .ok()
            .and_then(|text| parse_http_date(text).ok());
        self.is_settled && date.is_some() && date == self.modified
    }
}

/// Whether nothing changed at that time can change once more without having another time.
pub(crate) fn is_settled(changed: SystemTime, now: SystemTime) -> bool {
    now.duration_since(changed).is_ok_and(|since| since >= STEP)
}

/// Whether this is one entity tag.
pub(crate) fn is_tag(value: &[u8]) -> bool {
    let opaque = value.strip_prefix(b"W/").unwrap_or(value);
    tag_len(opaque) == Some(opaque.len())
}

/// The value of a field that may be there once.
pub(crate) fn single(fields: &HeaderMap, name: HeaderName) -> Option<&HeaderValue> {
    let mut values = fields.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

/// The entity tags of a list, up to the first thing that is none.
fn tags(mut list: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let is_between = |byte: &u8| matches!(byte, b' ' | b'\t' | b',');
        let start = list.iter().position(|byte| !is_between(byte))?;
        let rest = &list[start..];
        let prefix = if rest.starts_with(b"W/") { 2 } else { 0 };
        let (tag, behind) = rest.split_at(prefix + tag_len(&rest[prefix..])?);
        list = behind;
        Some(tag)
    })
}

/// The length of the quoted tag at the beginning.
fn tag_len(text: &[u8]) -> Option<usize> {
    let inner = text.strip_prefix(b"\"")?;
    let end = inner
        .iter()
        .position(|byte| !matches!(byte, 0x21 | 0x23..=0x7e | 0x80..))?;
    (inner[end] == b'"').then_some(end + 2)
}

fn weak_eq(a: &[u8], b: &[u8]) -> bool {
    let opaque = |tag| <[u8]>::strip_prefix(tag, b"W/").unwrap_or(tag);
    opaque(a) == opaque(b)
}

fn strong_eq(a: &[u8], b: &[u8]) -> bool {
    a == b && !a.starts_with(b"W/")
}

/// One number of several, from which they cannot be read: a client need not know the numbers of inodes. (FNV-1a, and
/// the last steps of `MurmurHash3`.)
fn mix(numbers: &[u128]) -> u64 {
    let bytes = numbers.iter().flat_map(|number| number.to_le_bytes());
    let mut hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash = (hash ^ hash >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ hash >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ hash >> 33
}

#[cfg(test)]
mod tests {
    use httpdate::fmt_http_date;
    use proptest::prelude::*;

    use super::*;

    const NOW: Duration = Duration::from_secs(1_800_000_000);

    fn at(seconds_ago: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + NOW - Duration::from_secs(seconds_ago)
    }

    fn file() -> Validators {
        Validators {
            etag: HeaderValue::from_static("\"a,b\""),
            ..Validators::new(1, 2, Some(at(100)), at(0))
        }
    }

    fn judge(file: &Validators, fields: &[(&str, &str)]) -> Verdict {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            let name = HeaderName::try_from(*name).unwrap();
            map.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        file.judge(&map)
    }

    #[test]
    fn tags_are_compared_strongly_or_weakly() {
        use Verdict::{Failed, Go, NotModified};
        let weak = Validators {
            etag: HeaderValue::from_static("W/\"a,b\""),
            ..file()
        };
        for (field, value, if_strong, if_weak) in [
            ("if-match", "\"a,b\"", Go, Failed),
            ("if-match", "W/\"a,b\"", Failed, Failed),
            ("if-match", "*", Go, Go),
            ("if-match", " * ", Go, Go),
            ("if-match", "\"x\", \"a,b\"", Go, Failed),
            ("if-match", "\"x\"", Failed, Failed),
            ("if-match", "", Failed, Failed),
            ("if-match", "a,b", Failed, Failed),
            ("if-none-match", "\"a,b\"", NotModified, NotModified),
            ("if-none-match", "W/\"a,b\"", NotModified, NotModified),
            ("if-none-match", "*", NotModified, NotModified),
            ("if-none-match", ",\"\" ,\"a,b\"", NotModified, NotModified),
            ("if-none-match", "\"a\",\"b\"", Go, Go),
            ("if-none-match", "\"a\" \"a,b\"", NotModified, NotModified),
            ("if-none-match", "a, \"a,b\"", Go, Go),
            (
                "if-none-match",
                "\"\u{e9}\", \"a,b\"",
                NotModified,
                NotModified,
            ),
            ("if-none-match", "\"a b\", \"a,b\"", Go, Go),
            ("if-none-match", "w/\"a,b\"", Go, Go),
        ] {
            assert_eq!(
                judge(&file(), &[(field, value)]),
                if_strong,
                "{field}: {value}"
            );
            assert_eq!(
                judge(&weak, &[(field, value)]),
                if_weak,
                "{field}: {value}, weak"
            );
        }
        let twice = [("if-none-match", "\"x\""), ("if-none-match", "\"a,b\"")];
        assert_eq!(judge(&file(), &twice), NotModified);
    }

    #[test]
    fn dates_are_compared_in_seconds() {
        use Verdict::{Failed, Go, NotModified};
        let file = file();
        for (ago, if_unmodified, if_modified) in [
            (101, Failed, Go),
            (100, Go, NotModified),
            (99, Go, NotModified),
        ] {
            let date = fmt_http_date(at(ago));
            assert_eq!(
                judge(&file, &[("if-unmodified-since", &date)]),
                if_unmodified
            );
            assert_eq!(judge(&file, &[("if-modified-since", &date)]), if_modified);
            let unknown = Validators {
                modified: None,
                ..file.clone()
            };
            assert_eq!(judge(&unknown, &[("if-unmodified-since", &date)]), Go);
            assert_eq!(judge(&unknown, &[("if-modified-since", &date)]), Go);
        }
        let date = fmt_http_date(at(0));
        assert_eq!(judge(&file, &[("if-modified-since", "yesterday")]), Go);
        assert_eq!(judge(&file, &[("if-unmodified-since", "yesterday")]), Go);
        let twice = [("if-modified-since", &*date), ("if-modified-since", &*date)];
        assert_eq!(judge(&file, &twice), Go);
    }

    #[test]
    fn fields_have_the_order_of_the_rfc() {
        use Verdict::{Failed, Go, GoWhole, NotModified};
        let (old, new) = (&*fmt_http_date(at(1_000)), &*fmt_http_date(at(0)));
        for (fields, expected) in [
            // A tag is more than a date.
            (vec![("if-match", "*"), ("if-unmodified-since", old)], Go),
            (
                vec![("if-none-match", "\"x\""), ("if-modified-since", new)],
                Go,
            ),
            // What must match comes first.
            (vec![("if-match", "\"x\""), ("if-none-match", "*")], Failed),
            (
                vec![("if-unmodified-since", old), ("if-none-match", "*")],
                Failed,
            ),
            (vec![("if-match", "*"), ("if-none-match", "*")], NotModified),
            // The range comes last.
            (
                vec![("if-none-match", "*"), ("if-range", "\"x\"")],
                NotModified,
            ),
            (vec![("if-match", "*"), ("if-range", "\"x\"")], GoWhole),
        ] {
            assert_eq!(judge(&file(), &fields), expected, "{fields:?}");
        }
    }

    #[test]
    fn a_range_is_for_one_state_only() {
        use Verdict::{Go, GoWhole};
        let (date, other) = (&*fmt_http_date(at(100)), &*fmt_http_date(at(0)));
        for (value, expected) in [
            ("\"a,b\"", Go),
            ("W/\"a,b\"", GoWhole),
            ("\"x\"", GoWhole),
            (date, Go),
            // Not even a later one.
            (other, GoWhole),
            ("x", GoWhole),
            ("", GoWhole),
        ] {
            assert_eq!(judge(&file(), &[("if-range", value)]), expected, "{value}");
        }
        let fresh = Validators {
            is_settled: false,
            ..file()
        };
        assert_eq!(judge(&fresh, &[("if-range", date)]), GoWhole);
        let weak = Validators {
            etag: HeaderValue::from_static("W/\"a\""),
            ..file()
        };
        assert_eq!(judge(&weak, &[("if-range", "W/\"a\"")]), GoWhole);
        assert_eq!(
            judge(&file(), &[("if-range", date), ("if-range", date)]),
            GoWhole
        );
    }

    #[test]
    fn each_part_of_a_files_state_changes_its_tag() {
        let tag = |inode, size, changed| Validators::new(inode, size, Some(changed), at(0)).etag;
        let first = tag(1, 2, at(100));
        assert!(is_tag(first.as_bytes()), "{first:?}");
        assert_eq!(first, tag(1, 2, at(100)));
        let later = at(100) + Duration::from_nanos(1);
        for other in [tag(2, 2, at(100)), tag(1, 3, at(100)), tag(1, 2, later)] {
            assert!(!weak_eq(first.as_bytes(), other.as_bytes()), "{other:?}");
        }
        let told = |changed| Validators::new(1, 2, changed, at(0));
        let long_ago = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
        for (changed, is_weak, is_told) in [
            (Some(at(2)), false, true),
            (Some(at(1)), true, true),
            (Some(at(0) + Duration::from_secs(60)), true, false),
            (Some(long_ago), false, false),
            (None, true, false),
        ] {
            let told = told(changed);
            assert_eq!(
                told.etag.as_bytes().starts_with(b"W/"),
                is_weak,
                "{changed:?}"
            );
            assert_eq!(told.modified.is_some(), is_told, "{changed:?}");
        }
    }

    proptest! {
        #[test]
        fn a_list_has_the_tags_that_were_put_there(
            list in prop::collection::vec(("(W/)?", "\"[!#-~]{0,5}\""), 0..6),
            between in "[ \t]{0,2},[ ,\t]{0,3}",
        ) {
            let all: Vec<_> = list.iter().map(|(weak, tag)| format!("{weak}{tag}")).collect();
            let text = all.join(&between);
            let found: Vec<_> = tags(text.as_bytes()).map(<[u8]>::to_vec).collect();
            prop_assert_eq!(found, all.iter().map(|tag| tag.clone().into_bytes()).collect::<Vec<_>>());
            prop_assert!(all.iter().all(|tag| is_tag(tag.as_bytes())));
        }

        #[test]
        fn whatever_comes_there_is_a_verdict(value in prop::collection::vec(any::<u8>(), 0..20)) {
            prop_assume!(HeaderValue::from_bytes(&value).is_ok());
            for name in [IF_MATCH, IF_NONE_MATCH, IF_RANGE, IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE] {
                let mut fields = HeaderMap::new();
                fields.insert(name, HeaderValue::from_bytes(&value).unwrap());
                file().judge(&fields);
            }
        }
    }
}
