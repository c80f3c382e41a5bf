//! The content types of files, by their names.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What web sites are made of, and what is mostly offered for download; sorted.
const TYPES: &[(&str, &str)] = &[
    ("avif", "image/avif"),
    ("bmp", "image/bmp"),
    ("css", "text/css; charset=utf-8"),
    ("csv", "text/csv; charset=utf-8"),
    ("gif", "image/gif"),
    ("gz", "application/gzip"),
    ("htm", "text/html; charset=utf-8"),
    ("html", "text/html; charset=utf-8"),
    ("ico", "image/x-icon"),
    ("jpeg", "image/jpeg"),
    ("jpg", "image/jpeg"),
    ("js", "text/javascript; charset=utf-8"),
    ("json", "application/json"),
    ("m4a", "audio/mp4"),
    ("map", "application/json"),
    ("md", "text/markdown; charset=utf-8"),
    ("mjs", "text/javascript; charset=utf-8"),
    ("mp3", "audio/mpeg"),
    ("mp4", "video/mp4"),
    ("oga", "audio/ogg"),
    ("ogg", "audio/ogg"),
    ("ogv", "video/ogg"),
    ("otf", "font/otf"),
    ("pdf", "application/pdf"),
    ("png", "image/png"),
    ("svg", "image/svg+xml"),
    ("tar", "application/x-tar"),
    ("ttf", "font/ttf"),
    ("txt", "text/plain; charset=utf-8"),
    ("wasm", "application/wasm"),
    ("wav", "audio/wav"),
    ("weba", "audio/webm"),
    ("webm", "video/webm"),
    ("webmanifest", "application/manifest+json"),
    ("webp", "image/webp"),
    ("woff", "font/woff"),
    ("woff2", "font/woff2"),
    ("xhtml", "application/xhtml+xml"),
    ("xml", "application/xml"),
    ("zip", "application/zip"),
    ("zst", "application/zstd"),
];

/// The type of any bytes.
const UNKNOWN: &str = "application/octet-stream";

/// The content type of a file, by the extension of its name, in upper or lower case. The types are those that web sites
/// mostly need; all other files are `application/octet-stream`. Text is taken for UTF-8. Only the name is looked at:
/// the file need not exist.
///
/// ```
/// assert_eq!(httpdown::content_type("a/index.HTML"), "text/html; charset=utf-8");
/// assert_eq!(httpdown::content_type("a.tar.gz"), "application/gzip");
/// assert_eq!(httpdown::content_type("a/b.c/README"), "application/octet-stream");
/// ```
#[must_use]
pub fn content_type(path: impl AsRef<Path>) -> &'static str {
    let extension = path.as_ref().extension().unwrap_or_default().as_bytes();
    let known = |(name, _): &&(&str, &str)| name.as_bytes().eq_ignore_ascii_case(extension);
    let found = TYPES.iter().find(known);
    found.map_or(UNKNOWN, |(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn the_table_is_sorted_and_can_be_sent() {
        assert!(TYPES.is_sorted_by(|(a, _), (b, _)| a < b));
        for (extension, kind) in TYPES {
            assert!(HeaderValue::try_from(*kind).is_ok(), "{kind}");
            assert_eq!(content_type(format!("x.{extension}")), *kind);
        }
        for unknown in [
            "", ".", ".html", "html", "a.", "a.b/c", "a.htmlx", "a.\u{e9}",
        ] {
            assert_eq!(content_type(unknown), UNKNOWN, "{unknown}");
        }
    }
}
