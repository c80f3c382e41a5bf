//! The program as it was started, and not as it has become since: what a restart executes (ADR 0029).

use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process;

use crate::handover;
use crate::sys::spawn::Env;

/// What the next program gets anew, or not at all.
const REPLACED: [&str; 5] = [
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "LISTEN_PIDFDID",
    handover::VARIABLE,
];
/// These say for which process other variables of systemd are. If they mean this process, they get the new number.
const FOR_PROCESS: [&str; 2] = ["WATCHDOG_PID", "SYSTEMD_EXEC_PID"];
/// What a service manager has told this process. It goes to the next one as it is, whatever environment the host gives.
const MANAGERS: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "MANAGERPID"];

/// How this process was started. It is noted at the first use of the library, before the program changes its directory
/// or is replaced. What the program adds to its environment later is not in it, so nothing grows over generations.
#[derive(Debug)]
pub(crate) struct Origin {
    /// `None`: not known, or removed since it was started.
    pub(crate) program: Option<PathBuf>,
    pub(crate) args: Vec<OsString>,
    /// `NAME=VALUE`.
    env: Vec<OsString>,
    /// `None`: removed, or not to be read.
    pub(crate) dir: Option<PathBuf>,
}

impl Origin {
    pub(crate) fn note() -> Self {
        let vars = || env::vars_os().map(|variable| entry(&variable)).collect();
        // /proc may not be mounted, and then what std knows is mostly the same.
        let args = texts("/proc/self/cmdline").unwrap_or_else(|_| env::args_os().collect());
        let env = texts("/proc/self/environ").unwrap_or_else(|_| vars());
        let dir = directory(value(&env, "PWD"));
        let running = env::current_exe().ok();
        let program = args.first().and_then(|name| {
            let is_running =
                |path: &Path| match (fs::metadata(path), fs::metadata("/proc/self/exe")) {
                    (Ok(there), Ok(running)) => is_same(&there, &running),
                    (there, _) => there.is_ok_and(|there| there.is_file()),
                };
            find(name, value(&env, "PATH"), dir.as_deref(), is_running)
        });
        Self {
            program: program.or_else(|| running.filter(|path| path.exists())),
            args,
            env,
            dir,
        }
    }

    /// The value that a variable had then.
    pub(crate) fn var(&self, name: &str) -> Option<&OsStr> {
        value(&self.env, name)
    }

    /// The environment of the next program, which has sockets of these names from descriptor 3 on, and then the socket
    /// to this process. `given`: its variables otherwise, if they are not those with which this one was started.
    pub(crate) fn env(&self, given: Option<&[(OsString, OsString)]>, names: &[&str]) -> Env {
        let mut next = Env::default();
        let given = given.map(|given| given.iter().map(entry).collect::<Vec<_>>());
        for entry in given.as_ref().unwrap_or(&self.env) {
            if ![&REPLACED[..], &FOR_PROCESS, &MANAGERS]
                .iter()
                .any(|names| is_of(entry, names))
            {
                next.add(text(entry.as_bytes()));
            }
        }
        for entry in &self.env {
            let name = name_of(entry);
            let prefix = [name, b"="].concat();
            let ours = [&prefix, process::id().to_string().as_bytes()].concat();
            if is_of(entry, &FOR_PROCESS) && entry.as_bytes() == ours {
                next.add_pid(&text(prefix));
            } else if is_of(entry, &FOR_PROCESS) || is_of(entry, &MANAGERS) {
                next.add(text(entry.as_bytes()));
            }
        }
        let (count, names) = (names.len(), names.join(":"));
        next.add(text(format!("LISTEN_FDS={count}")));
        next.add(text(format!("LISTEN_FDNAMES={names}")));
        next.add_pid(c"LISTEN_PID=");
        next.add_pid(&text(format!("{}={}:", handover::VARIABLE, 3 + count)));
        next
    }
}

/// Whether an entry is of one of these variables.
fn is_of(entry: &OsStr, names: &[&str]) -> bool {
    names.iter().any(|name| name_of(entry) == name.as_bytes())
}

/// A text of the kernel's form. What is behind a zero is cut off.
pub(crate) fn text(bytes: impl Into<Vec<u8>>) -> CString {
    let mut bytes = bytes.into();
    let end = bytes.iter().position(|byte| *byte == 0);
    bytes.truncate(end.unwrap_or(bytes.len()));
    CString::new(bytes).unwrap_or_default()
}

/// The texts in a file of the kernel, each with a zero behind it.
fn texts(path: &str) -> io::Result<Vec<OsString>> {
    let bytes = fs::read(path)?;
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(&bytes);
    if bytes.is_empty() {
        // Such a process has none, or has overwritten them.
        return Err(io::ErrorKind::NotFound.into());
    }
    let texts = bytes.split(|byte| *byte == 0);
    Ok(texts
        .map(|text| OsString::from_vec(text.to_vec()))
        .collect())
}

fn entry((name, value): &(OsString, OsString)) -> OsString {
    [name.as_os_str(), value.as_os_str()].join(OsStr::new("="))
}

fn name_of(entry: &OsStr) -> &[u8] {
    let bytes = entry.as_bytes();
    bytes.split(|byte| *byte == b'=').next().unwrap_or(bytes)
}

/// The value of a variable.
fn value<'a>(env: &'a [OsString], name: &str) -> Option<&'a OsStr> {
    let mut entries = env.iter().map(|entry| entry.as_bytes());
    let value = entries.find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="));
    value.map(OsStr::from_bytes)
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// The working directory: by the name that a shell has for it, if that is the same one. So a link that is changed is
/// followed to where it leads then.
fn directory(named: Option<&OsStr>) -> Option<PathBuf> {
    let here = fs::metadata(".").ok()?;
    let named = named.map(PathBuf::from).filter(|named| {
        let there = fs::metadata(named);
        named.is_absolute() && there.is_ok_and(|there| is_same(&there, &here))
    });
    named.or_else(|| env::current_dir().ok())
}

/// The absolute path of a program by the name with which it was started, if that is still what runs. Links in it stay:
/// a link that is changed, and a file that is replaced, mean the new version.
fn find(
    name: &OsStr,
    path: Option<&OsStr>,
    dir: Option<&Path>,
    is_running: impl Fn(&Path) -> bool,
) -> Option<PathBuf> {
    // Without "." and "//": the path is shown. A ".." stays, because it may lead elsewhere behind a link.
    let absolute = |path: PathBuf| match dir {
        _ if path.is_absolute() => Some(path.components().collect::<PathBuf>()),
        Some(dir) => Some(dir.join(path).components().collect()),
        None => None,
    };
    if name.as_bytes().contains(&b'/') {
        return absolute(name.into()).filter(|path| is_running(path));
    }
    // An empty folder in the list is the working directory.
    let folders = env::split_paths(path?);
    let mut found = folders.filter_map(|folder| absolute(folder.join(name)));
    found.find(|path| is_running(path))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

    use std::os::unix::fs::symlink;

    use super::*;

    fn os(texts: &[&str]) -> Vec<OsString> {
        texts.iter().map(OsString::from).collect()
    }

    #[test]
    fn this_process_is_noted_as_it_was_started() {
        let origin = Origin::note();
        let running = fs::metadata("/proc/self/exe").unwrap();
        let noted = fs::metadata(origin.program.unwrap()).unwrap();
        assert!(is_same(&noted, &running));
        assert_eq!(origin.args, env::args_os().collect::<Vec<_>>());
        let dir = origin.dir.unwrap();
        assert_eq!(dir.canonicalize().unwrap(), env::current_dir().unwrap());
        assert_eq!(value(&origin.env, "PATH"), env::var_os("PATH").as_deref());
    }

    #[test]
    fn the_next_environment_has_no_old_sockets_and_new_numbers() {
        let origin = Origin {
            program: None,
            args: Vec::new(),
            env: os(&[
                "A=1",
                "LISTEN_FDS=9",
                "LISTEN_PID=1",
                "LISTEN_FDNAMES=old",
                "LISTEN_PIDFDID=4",
                "HTTPDOWN_RESTART=8:1",
                &format!("WATCHDOG_PID={}", process::id()),
                "WATCHDOG_USEC=5",
                "SYSTEMD_EXEC_PID=1",
                "NOTIFY_SOCKET=/run/notify",
                "LISTEN_FDS_OF_MINE=1",
                "=C:",
                "odd",
            ]),
            dir: None,
        };
        let env = origin.env(None, &["web", "httpdown"]);
        assert_eq!(
            env.texts(17),
            [
                "A=1",
                "LISTEN_FDS_OF_MINE=1",
                "=C:",
                "odd",
                "WATCHDOG_USEC=5",
                "SYSTEMD_EXEC_PID=1",
                "NOTIFY_SOCKET=/run/notify",
                "LISTEN_FDS=2",
                "LISTEN_FDNAMES=web:httpdown",
                "WATCHDOG_PID=17",
                "LISTEN_PID=17",
                "HTTPDOWN_RESTART=5:17",
            ]
        );
    }

    #[test]
    fn a_program_is_found_by_its_name_and_links_stay() {
        let folder = env::temp_dir().join(format!("httpdown-program-{}", process::id()));
        let (first, second) = (folder.join("first"), folder.join("second"));
        for folder in [&first, &second] {
            fs::create_dir_all(folder).unwrap();
        }
        // What runs is in the second folder, by way of a link; another program of its name is in the first.
        fs::write(first.join("app"), "another").unwrap();
        fs::write(second.join("app-1.0"), "it").unwrap();
        symlink("app-1.0", second.join("app")).unwrap();
        let running = fs::metadata(second.join("app-1.0")).unwrap();
        let is_running =
            |path: &Path| fs::metadata(path).is_ok_and(|there| is_same(&there, &running));
        let list = env::join_paths([&first, &second]).unwrap();
        let find = |name: &str, path: Option<&OsStr>, dir: Option<&Path>| {
            super::find(OsStr::new(name), path, dir, is_running)
        };
        let app = Some(second.join("app"));
        assert_eq!(find("app", Some(&list), None), app);
        assert_eq!(find("app", None, Some(&second)), None);
        assert_eq!(
            find("second/app", Some(&list), Some(&folder)),
            Some(folder.join("second/app"))
        );
        // Two paths that differ only in that are equal.
        let found = find("./second/.//app", None, Some(&folder)).unwrap();
        assert_eq!(found.as_os_str(), second.join("app").as_os_str());
        assert_eq!(find("second/app", Some(&list), None), None);
        assert_eq!(find("first/app", Some(&list), Some(&folder)), None);
        let absolute = second.join("app");
        assert_eq!(find(absolute.to_str().unwrap(), None, None), app);
        // An empty folder in the list.
        assert_eq!(find("app", Some(OsStr::new("")), Some(&second)), app);
        assert_eq!(find("-bash", Some(&list), Some(&folder)), None);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn the_directory_has_the_name_that_a_shell_has_for_it_if_that_is_right() {
        let here = env::current_dir().unwrap();
        let link = env::temp_dir().join(format!("httpdown-here-{}", process::id()));
        symlink(&here, &link).unwrap();
        assert_eq!(directory(Some(link.as_os_str())), Some(link.clone()));
        fs::remove_file(link).unwrap();
        for wrong in [
            Some(OsStr::new("/")),
            Some(OsStr::new(".")),
            Some(OsStr::new("/nowhere")),
            None,
        ] {
            assert_eq!(directory(wrong), Some(here.clone()));
        }
    }
}
