//! Whether the connection goes on after an answer, and how the answer says so (RFC 9112, 9.3 and 9.6).

use http::header::{CONNECTION, HeaderValue};
use http::{HeaderMap, HeaderName, Response, Version};

use crate::conn::body::SKIPPED;
use crate::conn::respond::Outcome;
use crate::limits::Limit;

use super::framing::BodyLength;
use super::service::Answering;
use super::validate::{has_option, options};

static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

impl<O: Outcome> Answering<O> {
    /// Whether the connection ends after this answer. `remaining`: how many bytes hyper will take of its body, if that
    /// is known.
    pub(super) fn is_last(&self, headers: &HeaderMap, remaining: Option<u64>) -> bool {
        let conn = self.conn();
        let has_own_end = remaining.is_some() || !self.is_http10;
        if !has_own_end {
            // This answer ends with the connection. If it is cut, the connection must not end in that way.
            conn.h1.response_ends_with_connection();
        }
        // Nobody knows whether somebody will still read the rest of the body.
        let is_unread = !conn.h1.has_read_body() && !self.may_be_skipped(remaining.is_some());
        let stops = conn.shared().phases.get().announces_close()
            && (is_unread || !conn.has_request_behind() || conn.shared().is_stop_pressing());
        if stops {
            // The client is told of the end, and sends its next request on another connection.
            conn.close_announced();
        }
        stops
            || self.is_spent(is_unread)
            || conn.h1.is_worn()
            || !self.keep_alive
            || !has_own_end
            || is_unread
            || says_close(headers)
    }

    /// Whether the connection has had all the requests that it may have. If the client has sent more, it may have twice
    /// as many.
    fn is_spent(&self, is_unread: bool) -> bool {
        let conn = self.conn();
        let Some(most) = conn.shared().options.max_conn_requests else {
            return false;
        };
        let (count, most) = (conn.requests(), most.get() as u64);
        let is_spent = count >= most
            && (is_unread || count >= most.saturating_mul(2) || !conn.has_request_behind());
        if is_spent {
            conn.limit_bites(Limit::ConnRequests);
            conn.close_announced();
        }
        is_spent
    }

    /// Whether the connection can go on after a body that nobody reads. The rest of the body must be short and sure to
    /// come, or be here already. And hyper must not say that the connection ends.
    fn may_be_skipped(&self, has_known_end: bool) -> bool {
        let conn = self.conn();
        let is_short =
            || matches!(conn.h1.body_length(), BodyLength::Known(left) if left <= SKIPPED);
        // Who keeps it may read it never, and the next request would wait for that.
        self.rest
            .as_ref()
            .is_none_or(|rest| rest.is_left(has_known_end))
            && self.has_plain_length
            && !self.is_http10
            && (is_short() || conn.has_request_behind())
    }

    /// Says that the connection ends. The host's other connection options may stay, but not those that say that it goes
    /// on.
    #[cold]
    pub(super) fn say_close<S>(&self, response: &mut Response<S>) {
        let mut others = Vec::new();
        for field in response.headers().get_all(CONNECTION) {
            for option in options(field) {
                let is_one_of = |names: [&str; 3]| {
                    let mut names = names.iter();
                    names.any(|name| option.eq_ignore_ascii_case(name.as_bytes()))
                };
                if !is_one_of(["", "close", "keep-alive"]) {
                    others.extend_from_slice(if others.is_empty() { b"" } else { b", " });
                    others.extend_from_slice(option);
                }
            }
        }
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        // `close` has a field of its own, because hyper does not look for `close` in a field that it cannot read
        // completely.
        if let (false, Ok(others)) = (others.is_empty(), HeaderValue::from_bytes(&others)) {
            headers.append(CONNECTION, others);
        }
        headers.remove(&KEEP_ALIVE);
        if self.is_http10 {
            // Otherwise hyper adds `keep-alive`, if the client has asked for that.
            *response.version_mut() = Version::HTTP_10;
        }
    }

    /// Says when an idle connection ends, unless the response itself says something about that.
    pub(super) fn announce(&self, headers: &mut HeaderMap) {
        if let Some(timeout) = &self.conn().shared().announcement
            && !headers.contains_key(CONNECTION)
            && !headers.contains_key(&KEEP_ALIVE)
        {
            // `Connection` must name every field about the connection (RFC 9110, 7.6.1).
            headers.insert(CONNECTION, HeaderValue::from_static("keep-alive"));
            headers.insert(KEEP_ALIVE.clone(), timeout.clone());
        }
    }
}

/// Whether the host's own headers say that the connection ends. Looking at each header is quicker than looking one up.
fn says_close(headers: &HeaderMap) -> bool {
    let mut fields = headers.iter().filter(|(name, _)| *name == CONNECTION);
    fields.any(|(_, field)| has_option(field, b"close"))
}
