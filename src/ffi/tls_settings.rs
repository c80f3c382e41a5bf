//! The settings of TLS as C gives them, and what C is told of a handshake.

use std::ffi::{c_char, c_int};
use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::{Builder, ClientAuth, ClientCertificate, Identity, TicketKey};
use crate::{Error, Result, Tls, TlsInfo, TlsVersion};

use super::boundary::{duration_or, read_sized, size_of_callers, slice, text, write_sized};
use super::request::httpdown_request;
use super::server::httpdown_server;
use super::types::httpdown_status::*;
use super::types::{
    httpdown_bytes, httpdown_certificate, httpdown_client_auth, httpdown_status, httpdown_tls,
    httpdown_tls_info, httpdown_tls_version,
};

/// More certificates than this are a mistake.
const MOST_CERTIFICATES: usize = 1 << 16;

/// Sets the option `tls`.
///
/// # Safety
/// The pointer is NULL or points to settings, as the header describes them.
pub(super) unsafe fn set(builder: Builder, tls: *const httpdown_tls) -> Result<Builder> {
    if tls.is_null() {
        return Ok(builder);
    }
    // SAFETY: the same promise.
    Ok(builder.tls(unsafe { settings(tls)? }))
}

/// Reads the files again if there are no settings.
///
/// # Safety
/// The pointer is NULL or points to settings, as the header describes them.
pub(super) unsafe fn reload(server: &httpdown_server, tls: *const httpdown_tls) -> Result<()> {
    if tls.is_null() {
        return server.get().reread_tls();
    }
    // SAFETY: the same promise.
    let tls = unsafe { settings(tls)? };
    server.get().reload_tls(&tls)
}

/// # Safety
/// The pointer is NULL or points to settings, as the header describes them.
unsafe fn settings(tls: *const httpdown_tls) -> Result<Tls> {
    // SAFETY: the same promise.
    let (raw, understood): (httpdown_tls, _) = unsafe { read_sized(tls, "tls")? };
    understood?;
    let first = httpdown_certificate {
        cert_file: raw.cert_file,
        key_file: raw.key_file,
        cert: raw.cert,
        key: raw.key,
    };
    // SAFETY: the header's preface.
    let mut tls = Tls::new(unsafe { identity(&first, "tls")? });
    if raw.more_count > MOST_CERTIFICATES {
        let why = format!("tls.more_count is {}", raw.more_count);
        return Err(Error::InvalidArgument(why));
    }
    // SAFETY: the header's preface: an array of that length.
    let more = unsafe { slice(raw.more, raw.more_count, "tls.more")? };
    for (index, one) in more.iter().enumerate() {
        // SAFETY: the header's preface.
        tls = tls.identity(unsafe { identity(one, &format!("tls.more[{index}]"))? });
    }
    tls = tls.min_version(match raw.min_version {
        0 | TLS_1_2 => TlsVersion::V1_2,
        TLS_1_3 => TlsVersion::V1_3,
        other => {
            let why = format!("tls.min_version {other} is not known");
            return Err(Error::Unsupported(why));
        }
    });
    // SAFETY: the header's preface.
    if let Some(clients) = unsafe { clients(&raw)? } {
        tls = tls.clients(clients);
    }
    if raw.handshake_timeout_ms != 0 {
        tls = tls.handshake_timeout(duration_or(raw.handshake_timeout_ms, Duration::ZERO));
    }
    if let Some(count) = NonZeroUsize::new(raw.handshakes as usize) {
        tls = tls.handshakes(count);
    }
    // SAFETY: the header's preface.
    let keys = unsafe { raw.ticket_keys.as_slice("tls.ticket_keys")? };
    if keys.len() % TicketKey::LEN != 0 {
        let (length, one) = (keys.len(), TicketKey::LEN);
        let why = format!("tls.ticket_keys has {length} bytes, but each key has {one}");
        return Err(Error::InvalidArgument(why));
    }
    if !keys.is_empty() {
        let keys = keys.chunks(TicketKey::LEN).map(TicketKey::from_slice);
        tls = tls.ticket_keys(keys.collect::<Result<Vec<_>>>()?);
    }
    Ok(tls)
}

const TLS_1_2: c_int = httpdown_tls_version::HTTPDOWN_TLS_1_2 as c_int;
const TLS_1_3: c_int = httpdown_tls_version::HTTPDOWN_TLS_1_3 as c_int;

/// # Safety
/// The header's preface.
unsafe fn identity(of: &httpdown_certificate, name: &str) -> Result<Identity> {
    // SAFETY: the same promise.
    let cert = unsafe { pem(of.cert_file, of.cert, name, "cert")? };
    // SAFETY: the same promise.
    let key = unsafe { pem(of.key_file, of.key, name, "key")? };
    let missing = |what: &str| {
        Error::InvalidArgument(format!(
            "neither {name}.{what}_file nor {name}.{what} is set"
        ))
    };
    let cert = cert.ok_or_else(|| missing("cert"))?;
    let key = key.ok_or_else(|| missing("key"))?;
    match (cert, key) {
        (Pem::File(cert), Pem::File(key)) => Identity::from_pem_files(cert, key),
        (cert, key) => Identity::from_pem(&cert.read()?, &key.read()?),
    }
}

/// Where a PEM text is.
enum Pem<'a> {
    File(&'a Path),
    Memory(&'a [u8]),
}

impl Pem<'_> {
    fn read(&self) -> Result<Vec<u8>> {
        match self {
            Self::Memory(bytes) => Ok(bytes.to_vec()),
            Self::File(path) => fs::read(path)
                .map_err(|error| Error::io(format!("cannot read {}", path.display()), error)),
        }
    }
}

/// # Safety
/// The header's preface.
unsafe fn pem<'a>(
    file: *const c_char,
    memory: httpdown_bytes,
    of: &str,
    name: &str,
) -> Result<Option<Pem<'a>>> {
    // SAFETY: the same promise.
    let file = unsafe { text(file, &format!("{of}.{name}_file"))? };
    // SAFETY: the same promise.
    let memory = unsafe { memory.as_slice(&format!("{of}.{name}"))? };
    match (file, memory) {
        (None, []) => Ok(None),
        // What is a secret must not get into an error's text.
        (Some(path), []) if path.contains("-----BEGIN") => Err(Error::InvalidArgument(format!(
            "{of}.{name}_file is no path, but PEM: that is for {of}.{name}"
        ))),
        (Some(path), []) => Ok(Some(Pem::File(Path::new(path)))),
        (None, bytes) => Ok(Some(Pem::Memory(bytes))),
        _ => Err(Error::InvalidArgument(format!(
            "both {of}.{name}_file and {of}.{name} are set"
        ))),
    }
}

/// # Safety
/// The header's preface.
unsafe fn clients(raw: &httpdown_tls) -> Result<Option<ClientAuth>> {
    const NONE: c_int = httpdown_client_auth::HTTPDOWN_CLIENT_AUTH_NONE as c_int;
    const OPTIONAL: c_int = httpdown_client_auth::HTTPDOWN_CLIENT_AUTH_OPTIONAL as c_int;
    const REQUIRED: c_int = httpdown_client_auth::HTTPDOWN_CLIENT_AUTH_REQUIRED as c_int;
    // SAFETY: the same promise.
    let ca = unsafe { pem(raw.ca_file, raw.ca, "tls", "ca")? };
    // SAFETY: the same promise.
    let crl = unsafe { pem(raw.crl_file, raw.crl, "tls", "crl")? };
    let required = match raw.client_auth {
        // What is asked for is never left out silently.
        NONE if ca.is_some() || crl.is_some() => {
            let why = "tls.ca or tls.crl is set, but tls.client_auth is not";
            return Err(Error::InvalidArgument(why.into()));
        }
        NONE => return Ok(None),
        OPTIONAL => false,
        REQUIRED => true,
        other => {
            let why = format!("tls.client_auth {other} is not known");
            return Err(Error::Unsupported(why));
        }
    };
    let Some(ca) = ca else {
        let why = "tls.client_auth is set, but neither tls.ca_file nor tls.ca";
        return Err(Error::InvalidArgument(why.into()));
    };
    let clients = match (required, ca) {
        (false, Pem::Memory(ca)) => ClientAuth::optional(ca),
        (false, Pem::File(ca)) => ClientAuth::optional_from_file(ca),
        (true, Pem::Memory(ca)) => ClientAuth::required(ca),
        (true, Pem::File(ca)) => ClientAuth::required_from_file(ca),
    }?;
    let clients = match crl {
        Some(Pem::Memory(crl)) => clients.crls(crl),
        Some(Pem::File(crl)) => clients.crls_from_file(crl),
        None => Ok(clients),
    };
    clients.map(Some)
}

/// What is told of a client's certificate, made when it is asked for.
#[derive(Debug)]
pub(super) struct Texts {
    subject: String,
    /// One in each line.
    names: String,
    fingerprint: [u8; 32],
}

impl Texts {
    fn of(certificate: &ClientCertificate) -> Self {
        Self {
            subject: certificate.subject(),
            names: certificate.names().join("\n"),
            fingerprint: certificate.fingerprint(),
        }
    }
}

/// # Safety
/// The pointer is NULL, or writable for the number of bytes that its first field says.
pub(super) unsafe fn give_info(
    request: &httpdown_request,
    info: *mut httpdown_tls_info,
) -> Result<httpdown_status> {
    // SAFETY: the same promise.
    unsafe { size_of_callers(info.cast_const(), "info")? };
    let Some(tls) = request.tls() else {
        return Ok(HTTPDOWN_STATUS_NOT_FOUND);
    };
    // SAFETY: the same promise.
    unsafe { write_sized(info, of(request, tls), "info")? };
    Ok(HTTPDOWN_STATUS_OK)
}

fn of(request: &httpdown_request, tls: &Arc<TlsInfo>) -> httpdown_tls_info {
    let bytes = |bytes: Option<&[u8]>| bytes.map_or(httpdown_bytes::NONE, httpdown_bytes::of);
    let client = tls.client_certificate();
    let texts = client.map(|client| request.texts(|| Texts::of(client)));
    httpdown_tls_info {
        struct_size: size_of::<httpdown_tls_info>(),
        version: match tls.version() {
            TlsVersion::V1_2 => TLS_1_2,
            TlsVersion::V1_3 => TLS_1_3,
        },
        resumed: c_int::from(tls.is_resumed()),
        cipher_suite: httpdown_bytes::of(tls.cipher_suite().as_bytes()),
        server_name: bytes(tls.server_name().map(str::as_bytes)),
        alpn: bytes(tls.alpn()),
        client_certificate: bytes(client.map(ClientCertificate::der)),
        client_subject: bytes(texts.map(|texts| texts.subject.as_bytes())),
        client_names: bytes(texts.map(|texts| texts.names.as_bytes())),
        client_fingerprint: texts.map_or([0; 32], |texts| texts.fingerprint),
    }
}
