//! The files that pages need, from inside the binary: style, scripts, the player.

use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use rust_embed::RustEmbed;

use super::views;

#[derive(RustEmbed)]
#[folder = "src/console/assets"]
struct Own;

/// asciinema-player (Apache-2.0), put in place by deploy/prepare.
#[derive(RustEmbed)]
#[folder = "third_party/made-by-deploy-prepare/asciinema-player"]
struct Player;

/// A file by its name. Nothing in it is secret: the sign-in page is styled too.
pub(super) async fn asset(Path(name): Path<String>) -> Response {
    let kind = match name.rsplit_once('.').map(|(_, kind)| kind) {
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "text/plain; charset=utf-8",
    };
    match Own::get(&name).or_else(|| Player::get(&name)) {
        Some(file) => {
            // `no-cache`: a browser asks again, so a new release is never mixed with old files.
            let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")];
            (headers, file.data).into_response()
        }
        None => views::refused(StatusCode::NOT_FOUND, "Not found", "There is no such page."),
    }
}
