//! The file that has the ID of the program's process.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A new version of the file, under another name until it replaces the old one. So everybody who reads the file finds
/// one of the two, and a full disk is found out before it matters.
#[derive(Debug)]
pub(super) struct PidFile {
    path: PathBuf,
    beside: PathBuf,
}

impl PidFile {
    /// Writes the new version beside the old one.
    pub(super) fn prepare(path: &Path, pid: u32) -> io::Result<Self> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{pid}"));
        let file = Self {
            path: path.to_owned(),
            beside: path.with_file_name(name),
        };
        // Left over from a process of that number.
        let _ = fs::remove_file(&file.beside);
        let mut new = OpenOptions::new();
        let mut opened = new
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&file.beside)?;
        writeln!(opened, "{pid}")?;
        Ok(file)
    }

    /// Replaces the old version.
    pub(super) fn replace(&self) -> io::Result<()> {
        fs::rename(&self.beside, &self.path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// What has not replaced the old version is removed.
impl Drop for PidFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.beside);
    }
}
