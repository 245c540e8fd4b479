//! The web pages: a chat at `/`, a dashboard at `/dashboard`, and the styles and scripts of both under `/pages/`.
//!
//! They are compiled into the binary as they stand in `pages/`; nothing is built and nothing is loaded from elsewhere.
//! They are for everyone to read, as they hold no secrets: what they show comes from the API, with the visitor's key.
//!
//! What a model writes is never markup. The scripts only ever make nodes and set their text, and should one forget it,
//! the content security policy lets no inline script or foreign address through and has the browser refuse text where
//! markup would be parsed (`require-trusted-types-for`).

use std::sync::LazyLock;

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
    routing::get,
};
use sha2::{Digest, Sha256};

/// What pages may do: use their own scripts and styles, and ask this server.
pub const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";

/// Path, content type, text. Pages begin with one head and go on with their titles.
const FILES: [(&str, &str, &str); 14] = [
    ("/", HTML, concat!(include_str!("../pages/head.html"), include_str!("../pages/chat.html"))),
    (
        "/dashboard",
        HTML,
        concat!(include_str!("../pages/head.html"), include_str!("../pages/dashboard.html")),
    ),
    ("/pages/kvik.css", STYLE, include_str!("../pages/kvik.css")),
    ("/pages/icon.svg", "image/svg+xml", include_str!("../pages/icon.svg")),
    ("/pages/theme.js", SCRIPT, include_str!("../pages/theme.js")),
    ("/pages/dom.js", SCRIPT, include_str!("../pages/dom.js")),
    ("/pages/api.js", SCRIPT, include_str!("../pages/api.js")),
    ("/pages/markdown.js", SCRIPT, include_str!("../pages/markdown.js")),
    ("/pages/pipeline.js", SCRIPT, include_str!("../pages/pipeline.js")),
    ("/pages/conversations.js", SCRIPT, include_str!("../pages/conversations.js")),
    ("/pages/chat.js", SCRIPT, include_str!("../pages/chat.js")),
    ("/pages/charts.js", SCRIPT, include_str!("../pages/charts.js")),
    ("/pages/prefixes.js", SCRIPT, include_str!("../pages/prefixes.js")),
    ("/pages/dashboard.js", SCRIPT, include_str!("../pages/dashboard.js")),
];

/// What a browser tells apart versions of a file by.
static TAGS: LazyLock<[HeaderValue; FILES.len()]> = LazyLock::new(|| {
    FILES.map(|(_, _, text)| {
        let digest = Sha256::digest(text.as_bytes());
        let hex: String = digest.iter().take(12).map(|byte| format!("{byte:02x}")).collect();
        HeaderValue::from_str(&format!("\"{hex}\"")).unwrap_or(HeaderValue::from_static("\"\""))
    })
});

/// The routes of the pages.
pub fn pages<S: Clone + Send + Sync + 'static>() -> Router<S> {
    (0..FILES.len()).fold(Router::new(), |router, file| {
        router.route(FILES[file].0, get(move |headers: HeaderMap| async move { answer(file, &headers) }))
    })
}

fn answer(file: usize, asked: &HeaderMap) -> Response {
    let (_, content_type, text) = FILES[file];
    let tag = &TAGS[file];
    let known = asked.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let known = known.flat_map(|list| list.split(',')).any(|one| {
        let one = one.trim();
        one == "*" || Some(one.strip_prefix("W/").unwrap_or(one)) == tag.to_str().ok()
    });
    let mut response = Response::new(if known { Body::empty() } else { Body::from(text) });
    if known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = response.headers_mut();
    headers.insert(header::ETAG, tag.clone());
    let fixed = [
        (header::CONTENT_TYPE, content_type),
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_that_has_a_file_is_not_sent_it_again() {
        let first = answer(0, &HeaderMap::new());
        assert_eq!(first.status(), StatusCode::OK);
        let tag = first.headers()[header::ETAG].clone();
        let asked = |value: HeaderValue| HeaderMap::from_iter([(header::IF_NONE_MATCH, value)]);
        assert_eq!(answer(0, &asked(tag.clone())).status(), StatusCode::NOT_MODIFIED);
        let list = format!("\"other\", W/{}", tag.to_str().unwrap());
        assert_eq!(answer(0, &asked(list.parse().unwrap())).status(), StatusCode::NOT_MODIFIED);
        assert_eq!(answer(1, &asked(tag)).status(), StatusCode::OK);
    }

    #[test]
    fn scripts_parse_no_text_as_markup_and_load_nothing_from_elsewhere() {
        for (path, _, text) in FILES {
            for forbidden in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "https:",
                "onclick=",
            ] {
                assert!(!text.contains(forbidden), "{path} has {forbidden}");
            }
        }
    }
}
