//! The door: which requests are heard at all, who sends them, and the headers of every answer.
//!
//! A page that some other site made the browser ask for is refused: by the name in `Host` (DNS rebinding), by
//! `Sec-Fetch-Site` and `Origin`, and because the cookie is `SameSite=Strict`.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use keystore::UserName;

use super::views;
use crate::admin::{self, Caller, Command, Visitor};
use crate::audit::Event;
use crate::auth::Person;
use crate::config;
use crate::session::House;

/// How a request came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Door {
    /// On the configured port: from this machine, or through the TLS proxy.
    Port,
    /// Through the SSH connection of this user.
    Ssh(UserName),
}

/// A signed-in auditor, with the rights of this moment.
pub(super) struct Auditor {
    pub(super) caller: Caller,
    pub(super) cookie: String,
}

impl FromRequestParts<Arc<House>> for Auditor {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, house: &Arc<House>) -> Result<Self, Response> {
        let secure = way(&house.config().console, &parts.headers).is_some_and(|way| way.secure);
        let cookie = cookie(&parts.headers, secure).map(str::to_owned).ok_or_else(views::signed_out)?;
        match entitled(house, &cookie, parts.extensions.get()).await {
            Ok(caller) => Ok(Self { caller, cookie }),
            Err(None) => Err(views::signed_out()),
            Err(Some(why)) => Err(views::refused(StatusCode::FORBIDDEN, "Signed out", &why)),
        }
    }
}

/// Who sent this cookie, if they may use the console now. Without the right, the browser is signed out.
///
/// # Errors
/// The sentence that tells why not; none where nobody is signed in.
pub(super) async fn entitled(
    house: &House,
    cookie: &str,
    door: Option<&Door>,
) -> Result<Caller, Option<String>> {
    let now = Timestamp::now();
    let person = house.browsers.who(cookie, now).ok_or(None)?;
    // One auditor's cookie is of no use in another's connection.
    let fits = match door {
        Some(Door::Port) => true,
        Some(Door::Ssh(user)) => *user == person.user,
        None => false,
    };
    if !fits {
        return Err(None);
    }
    let caller = caller(&person);
    match admin::entitled(house, &caller, &Command::Console { stay: false }).await {
        Ok(caller) => Ok(caller),
        Err(fault) => {
            house.browsers.leave(cookie);
            let event = Event::ConsoleSignedOut { user: person.user.to_string(), reason: fault.says.clone() };
            if let Err(error) = house.trail.append(event, now).await {
                tracing::error!(%error, "audit.append_failed");
            }
            Err(Some(fault.says))
        }
    }
}

/// The person as a caller; the roles are asked for anew with every command.
pub(super) fn caller(person: &Person) -> Caller {
    let role = "auditor".parse().ok();
    Caller::User(Visitor {
        user: person.user.clone(),
        roles: role.into_iter().collect(),
        key: person.key.clone(),
        certificate: person.certificate,
        source: person.source,
        service: false,
        only_exchanges: false,
    })
}

/// By which of its names a browser reached the console.
pub(super) struct Way {
    /// Through the TLS proxy.
    pub(super) secure: bool,
}

/// The way a request came, by its `Host`; none if that is no name of the console.
pub(super) fn way(console: &config::Console, headers: &HeaderMap) -> Option<Way> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return None };
    let host = host.to_str().ok()?;
    if console.url.as_deref().and_then(|url| url.strip_prefix("https://")).is_some_and(|own| host == own) {
        return Some(Way { secure: true });
    }
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    matches!(name, "127.0.0.1" | "localhost" | "[::1]").then_some(Way { secure: false })
}

/// The cookie's name and its attributes.
pub(super) fn set_cookie(secure: bool, value: &str, seconds: i64) -> String {
    let name = cookie_name(secure);
    let tls = if secure { "; Secure" } else { "" };
    format!("{name}={value}; Path=/; HttpOnly; SameSite=Strict; Max-Age={seconds}{tls}")
}

fn cookie(headers: &HeaderMap, secure: bool) -> Option<&str> {
    let name = cookie_name(secure);
    let all = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = all.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
}

fn cookie_name(secure: bool) -> &'static str {
    if secure { "__Host-keyward" } else { "keyward" }
}

/// Refuses what did not come from the console's own pages; seals every answer with its headers.
pub(super) async fn guarded(State(house): State<Arc<House>>, request: Request, next: Next) -> Response {
    let config = house.config();
    let mut response = match refusal(&config.console, &request) {
        Some(why) => views::refused(StatusCode::FORBIDDEN, "Refused", why),
        None => next.run(request).await,
    };
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

fn refusal(console: &config::Console, request: &Request) -> Option<&'static str> {
    if !console.enabled {
        return Some("The console was switched off.");
    }
    if way(console, request.headers()).is_none() {
        return Some("The console is not known under the name that this request gives.");
    }
    let said = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let own_page = said("sec-fetch-site").is_none_or(|site| matches!(site, "same-origin" | "none"));
    if !own_page && request.uri().path() != "/sign-in" {
        return Some("Another site's page asked for this. Open it from the console itself.");
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let host = said("host").unwrap_or_default();
        let of_host = |origin: &str| origin.split_once("://").is_some_and(|(_, name)| name == host);
        if !said("origin").is_some_and(of_host) {
            return Some("This did not come from a page of the console.");
        }
    }
    None
}

/// The answer with the player's one exception: its terminal is WebAssembly.
pub(super) fn with_player(page: Response) -> Response {
    ([(header::CONTENT_SECURITY_POLICY, PLAYER_POLICY)], page).into_response()
}

/// On every answer that does not say otherwise.
const HEADERS: [(HeaderName, &str); 9] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    // Not `no-referrer`: with it a browser hides the origin of the console's own forms too.
    (header::REFERRER_POLICY, "same-origin"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (
        HeaderName::from_static("permissions-policy"),
        "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    ),
    (HeaderName::from_static("x-robots-tag"), "noindex"),
];
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types 'none'";
const PLAYER_POLICY: &str = "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self'; \
                             connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

#[cfg(test)]
mod tests {
    use super::*;

    fn console(url: Option<&str>) -> config::Console {
        config::Console { enabled: true, listen: None, url: url.map(str::to_owned), idle: 900, life: 3600 }
    }

    fn host(value: &'static str) -> HeaderMap {
        [(header::HOST, HeaderValue::from_static(value))].into_iter().collect()
    }

    #[test]
    fn only_names_of_this_machine_and_of_the_proxy_are_heard() {
        let proxied = console(Some("https://audit.example.com"));
        for own in ["127.0.0.1:8022", "localhost:1", "localhost", "[::1]:8022"] {
            assert!(way(&console(None), &host(own)).is_some_and(|way| !way.secure), "{own}");
        }
        assert!(way(&proxied, &host("audit.example.com")).is_some_and(|way| way.secure));
        for other in ["evil.example", "127.0.0.1.evil.example:8022", "audit.example.com:1", "localhost:x", ""]
        {
            assert!(way(&proxied, &host(other)).is_none(), "{other}");
        }
        assert!(way(&console(None), &host("audit.example.com")).is_none());
        assert!(way(&console(None), &HeaderMap::new()).is_none());
        let mut two = host("localhost");
        two.append(header::HOST, HeaderValue::from_static("localhost"));
        assert!(way(&console(None), &two).is_none());
    }

    #[test]
    fn what_another_site_asks_for_is_refused() {
        let ask = |method: &str, headers: &[(&str, &str)]| {
            let mut request = axum::http::Request::builder()
                .method(method)
                .uri("/sessions")
                .header("host", "localhost:8022");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            refusal(&console(None), &request.body(axum::body::Body::empty()).unwrap()).is_none()
        };
        assert!(ask("GET", &[]) && ask("GET", &[("sec-fetch-site", "none")]));
        assert!(
            !ask("GET", &[("sec-fetch-site", "cross-site")])
                && !ask("GET", &[("sec-fetch-site", "same-site")])
        );
        assert!(ask("POST", &[("origin", "http://localhost:8022"), ("sec-fetch-site", "same-origin")]));
        assert!(!ask("POST", &[("origin", "http://localhost:3000")]) && !ask("POST", &[("origin", "null")]));
        assert!(!ask("POST", &[]), "a browser says where a form came from");
    }

    #[test]
    fn a_cookie_is_found_by_its_whole_name() {
        let headers: HeaderMap =
            [(header::COOKIE, HeaderValue::from_static("xkeyward=a; keyward=b; __Host-keyward=c"))]
                .into_iter()
                .collect();
        assert_eq!((cookie(&headers, false), cookie(&headers, true)), (Some("b"), Some("c")));
        assert!(set_cookie(true, "v", 60).ends_with("; HttpOnly; SameSite=Strict; Max-Age=60; Secure"));
        assert!(!set_cookie(false, "v", 60).contains("Secure"));
    }
}
