//! ARCHITECTURE.md says who may call whom; the library's sources keep to it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that fails panics"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The layers, from the top: which modules of `src/` stand in which line of the list.
fn layers() -> BTreeMap<String, usize> {
    let text = read(&root().join("ARCHITECTURE.md"));
    let (_, section) = text.split_once("## Who may call whom").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let lines = section.lines().filter_map(|line| line.strip_prefix("    "));
    let mut layers = BTreeMap::new();
    for (layer, line) in lines.enumerate() {
        for module in line.split_whitespace() {
            let before = layers.insert(module.to_owned(), layer);
            assert_eq!(before, None, "{module} is listed twice");
        }
    }
    layers
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The Rust files under a folder, without those that are only tests.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .flat_map(
            |path| match path.file_name().and_then(|name| name.to_str()) {
                Some("tests") => Vec::new(),
                _ if path.is_dir() => sources(&path),
                _ if path.extension().is_some_and(|kind| kind == "rs") => vec![path],
                _ => Vec::new(),
            },
        )
        .collect()
}

/// The module at the top of the crate that a file belongs to: its folder, or itself.
fn module_of(path: &Path) -> String {
    let path = path.strip_prefix(root().join("src")).unwrap();
    let first = path.components().next().unwrap();
    let name = Path::new(first.as_os_str());
    name.file_stem().unwrap().to_str().unwrap().to_owned()
}

/// What a file names by `crate::`: the first name behind that, or each in `crate::{…}`. Not in comments, nor in the tests at
/// a file's end.
fn uses(source: &str) -> Vec<String> {
    let (code, _) = source
        .split_once("#[cfg(test)]\nmod tests {")
        .unwrap_or((source, ""));
    let code: Vec<_> = code
        .lines()
        .map(|line| line.split("//").next().unwrap_or(""))
        .collect();
    let code = code.join("\n");
    let mut found = Vec::new();
    for behind in code.split("crate::").skip(1) {
        let names = match behind.strip_prefix('{') {
            Some(list) => list.split('}').next().unwrap().split(',').collect(),
            None => vec![behind],
        };
        for name in names {
            let name = name.trim_start();
            let end = name.find(|c: char| !c.is_alphanumeric() && c != '_');
            found.push(name[..end.unwrap_or(name.len())].to_owned());
        }
    }
    found
}

/// Whether a file of one module may use a name at the top of the crate.
fn may_use(layers: &BTreeMap<String, usize>, module: &str, name: &str) -> Result<(), String> {
    let layer = |module| {
        let layer = layers.get(module);
        layer.ok_or_else(|| format!("{module} is in no line of the list"))
    };
    let own = layer(module)?;
    // A type that `lib.rs` exports: the public API, which is for the top.
    if name.starts_with(char::is_uppercase) || name == "percent_decode" {
        return match *own {
            0 => Ok(()),
            _ => Err(format!("{module} uses {name} by its public name")),
        };
    }
    if name == module || layer(name)? > own {
        Ok(())
    } else {
        Err(format!(
            "{module} uses {name}, which does not stand below it"
        ))
    }
}

#[test]
fn modules_use_only_what_stands_below_them() {
    let layers = layers();
    let files = sources(&root().join("src"));
    assert!(files.len() > 40, "{files:?}");
    let mut wrong = Vec::new();
    for path in &files {
        let module = module_of(path);
        // It only lists the others.
        if module == "lib" {
            continue;
        }
        for name in uses(&read(path)) {
            if let Err(why) = may_use(&layers, &module, &name) {
                wrong.push(format!("{}: {why}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for module in layers.keys() {
        let exists = files.iter().any(|path| module_of(path) == *module);
        assert!(exists, "{module} is listed, and there is none");
    }
}

#[test]
fn an_arrow_back_is_found() {
    let layers = layers();
    let source =
        "use crate::{error, server::Server}; // crate::ffi\nfn f() { crate::conn::serve() }";
    assert_eq!(uses(source), ["error", "server", "conn"]);
    assert_eq!(may_use(&layers, "conn", "error"), Ok(()));
    assert_eq!(may_use(&layers, "conn", "conn"), Ok(()));
    for (module, name) in [
        ("conn", "server"),
        ("conn", "Server"),
        ("conn", "unheard_of"),
        ("unheard_of", "error"),
        // In the same line.
        ("net", "threads"),
    ] {
        assert!(may_use(&layers, module, name).is_err(), "{module}, {name}");
    }
}
