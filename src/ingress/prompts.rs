//! What people are asked at the login, and what they are told beside it.

use std::borrow::Cow;

use russh::server::Auth;

use crate::auth::Enrolling;

pub(super) fn ask(instructions: Option<String>, prompt: impl Into<String>, echo: bool) -> Auth {
    Auth::Partial {
        name: "".into(),
        instructions: instructions.unwrap_or_default().into(),
        prompts: vec![(Cow::Owned(prompt.into()), echo)].into(),
    }
}

/// The client prints what stands in the prompt as it is; instructions it cuts at 1 kB and strips of all but ASCII.
pub(super) fn enrolment_prompt(enrolling: &Enrolling) -> String {
    let mut text = "\n".to_owned();
    if let Some(key) = enrolling.new_key() {
        text.push_str(&format!("This key will be added:  {key}\n"));
    }
    match enrolling.new_factor() {
        Some(fresh) => {
            let qr = fresh.qr().unwrap_or_default();
            text.push_str(&format!(
                "Scan this with an authenticator app, or type the secret into it:\n\n{qr}\n\nsecret: {}\n\n\
                 Then confirm with the code that the app shows.\n",
                fresh.secret_base32
            ));
        }
        None => text.push_str("Confirm with the code that your authenticator app shows.\n"),
    }
    text + CODE_PROMPT
}

pub(super) fn recovery_prompt(codes: &[String]) -> String {
    format!(
        "\nEnrolled. Recovery codes, each good once in place of the app; shown only now:\n\n  {}\n\n\
         Keep them, then press Enter: ",
        codes.join("\n  ")
    )
}

/// The same for every user name, known or not.
pub(super) const INVITATION: &str =
    "No key that you offered is known here. If an administrator gave you an enrolment code, type it now.";
/// Clients and scripts match on it.
pub(super) const CODE_PROMPT: &str = "Verification code: ";
