//! Reads PEM texts, and says what is wrong with them.

use std::fs;
use std::path::{self, Path, PathBuf};

use rustls::pki_types::pem::{Error as PemError, PemObject};

use crate::error::{Error, Result};

/// A file with a PEM text.
#[derive(Clone, Debug)]
pub(super) struct PemFile {
    path: PathBuf,
    /// What the text is called in errors.
    name: String,
}

impl PemFile {
    /// `what` says what the text is for. The path is resolved now, because the file may be read again when the program
    /// has another working directory.
    pub(super) fn new(what: &str, given: &Path) -> Result<Self> {
        let text = given.to_string_lossy();
        // What is a secret must not get into an error's text.
        if text.contains("-----BEGIN") {
            let why = format!("what is given for the path of {what} is PEM itself");
            return Err(Error::InvalidArgument(why));
        }
        let name = format!("{what} {text:?}");
        match path::absolute(given) {
            Ok(path) => Ok(Self { path, name }),
            Err(error) => Err(Error::io(format!("cannot read {name}"), error)),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn read(&self) -> Result<Vec<u8>> {
        fs::read(&self.path).map_err(|error| Error::io(format!("cannot read {}", self.name), error))
    }
}

/// All sections of one kind, at least one. `text` names the PEM text in errors, and `kind` the sections.
///
/// Sections of other kinds are left out, so one file may hold the certificates and the key.
///
/// # Errors
/// [`Error::Tls`] if the text is empty or malformed, or if there is no such section.
pub(super) fn sections<T: PemObject>(pem: &[u8], text: &str, kind: &str) -> Result<Vec<T>> {
    if pem.trim_ascii().is_empty() {
        return Err(Error::Tls(format!("{text} is empty")));
    }
    let sections: Vec<T> = T::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| Error::Tls(format!("{text} is malformed: {}", why(&error))))?;
    if sections.is_empty() {
        return Err(Error::Tls(format!("{text} contains no {kind}")));
    }
    Ok(sections)
}

/// The error for a person. Nothing of the text is shown: it may be a key, all of it in one line.
fn why(error: &PemError) -> String {
    match error {
        PemError::MissingSectionEnd { .. } => {
            "the end of a section is missing, or the line ends are".to_owned()
        }
        PemError::IllegalSectionStart { .. } => {
            "a line that begins a section is malformed".to_owned()
        }
        PemError::Base64Decode(_) => "the base64 text cannot be decoded".to_owned(),
        other => other.to_string(),
    }
}
