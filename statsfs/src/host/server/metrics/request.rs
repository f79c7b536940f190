//! What is asked for over HTTP.

use crate::tree::Exposition;

/// The most headers.
const MAX_HEADERS: usize = 64;
/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Metrics { format: Exposition, only_head: bool },
    Refused(u16, &'static str),
}

/// What a request asks for; `None` if there is more to come.
pub(super) fn asked(request: &[u8]) -> Option<Asked> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    match parsed.parse(request) {
        Ok(httparse::Status::Partial) => return None,
        Ok(httparse::Status::Complete(_)) => {}
        Err(_) => return Some(Asked::Refused(400, "Bad Request")),
    }
    let path = parsed.path.unwrap_or_default();
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    if path != "/metrics" {
        return Some(Asked::Refused(404, "Not Found"));
    }
    let only_head = match parsed.method {
        Some("GET") => false,
        Some("HEAD") => true,
        _ => return Some(Asked::Refused(405, "Method Not Allowed")),
    };
    let accepts = parsed.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("accept"));
    let accepts: Vec<_> =
        accepts.filter_map(|header| std::str::from_utf8(header.value).ok()).collect();
    Some(Asked::Metrics { format: wanted(&accepts.join(",")), only_head })
}

/// The format that is rather wanted than the other, by the header `Accept` of RFC 9110.
fn wanted(accept: &str) -> Exposition {
    let quality = |kinds: &[&str]| -> f64 {
        let all = accept.split(',').filter_map(|one| {
            let mut parts = one.split(';').map(str::trim);
            let kind = parts.next()?;
            if !kinds.iter().any(|wanted| kind.eq_ignore_ascii_case(wanted)) {
                return None;
            }
            let quality = parts.find_map(|part| part.strip_prefix("q="));
            Some(quality.map_or(1.0, |quality| quality.parse().unwrap_or(0.0)))
        });
        all.fold(0.0, f64::max)
    };
    let open = quality(&["application/openmetrics-text"]);
    let plain = quality(&["text/plain", "text/*"]);
    if open > 0.0 && open >= plain { Exposition::OpenMetrics } else { Exposition::Prometheus }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_what_is_rather_wanted() {
        for (accept, format) in [
            ("", Exposition::Prometheus),
            ("*/*", Exposition::Prometheus),
            ("text/plain", Exposition::Prometheus),
            ("application/openmetrics-text", Exposition::OpenMetrics),
            (
                "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1",
                Exposition::OpenMetrics,
            ),
            ("application/openmetrics-text; q=0.2, text/plain; q=0.9", Exposition::Prometheus),
            ("application/openmetrics-text;q=0", Exposition::Prometheus),
        ] {
            assert_eq!(wanted(accept), format, "{accept}");
        }
    }

    #[test]
    fn requests_are_taken_apart() {
        let get = |format| Some(Asked::Metrics { format, only_head: false });
        assert_eq!(asked(b"GET /metrics HTTP/1.1\r\nHost: a\r\n"), None);
        assert_eq!(asked(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"), get(Exposition::Prometheus));
        assert_eq!(
            asked(b"GET /metrics?x=1 HTTP/1.1\r\naccept: application/openmetrics-text\r\n\r\n"),
            get(Exposition::OpenMetrics)
        );
        let only_head = Asked::Metrics { format: Exposition::Prometheus, only_head: true };
        assert_eq!(asked(b"HEAD /metrics HTTP/1.0\r\n\r\n"), Some(only_head));
        let status = |request: &[u8]| match asked(request) {
            Some(Asked::Refused(status, _)) => status,
            other => panic!("{other:?}"),
        };
        assert_eq!(status(b"GET / HTTP/1.1\r\n\r\n"), 404);
        assert_eq!(status(b"POST /metrics HTTP/1.1\r\n\r\n"), 405);
        assert_eq!(status(b"\x16\x03\x01\x02\x00"), 400);
    }
}
