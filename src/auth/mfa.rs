//! The second factor: authenticator codes (TOTP, RFC 6238) and recovery codes.
//!
//! Owns enrolment, reset and the spending of codes. A code is spent by compare-and-set and durable before anyone is
//! let through, so it works once, also for two connections at the same instant. Never shows a secret after enrolment
//! and never says to a peer how near a code was.

use jiff::Timestamp;
use keystore::{SecondFactor, User, UserName, Vault};
use sha2::{Digest, Sha256};
use totp_rs::{Builder, Totp};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::LoginFault;

/// What the user must be given, once: it cannot be read again.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct Enrolment {
    /// The shared secret in base32, without padding, for `oathtool --base32` or typing.
    pub secret_base32: String,
    /// The `otpauth://` address for the QR code.
    pub uri: String,
    /// Ten codes `xxxx-xxxx-xxxx`, each good for one login without the authenticator.
    pub recovery_codes: Vec<String>,
}

/// Gives the user a second factor; durable when it returns.
///
/// # Errors
/// [`MfaError::UnknownUser`]; [`MfaError::Enrolled`] if there is one already: [`reset`] it first.
pub async fn enroll(vault: &Vault, user: &UserName, now: Timestamp) -> Result<Enrolment, MfaError> {
    if vault.get::<User>(user.as_str()).await?.is_none() {
        return Err(MfaError::UnknownUser(user.clone()));
    }
    let (factor, enrolment) = fresh(user, now)?;
    match vault.insert(&factor).await {
        Err(keystore::Error::Exists { .. }) => Err(MfaError::Enrolled(user.clone())),
        Err(other) => Err(other.into()),
        Ok(()) => Ok(enrolment),
    }
}

/// A second factor that is not stored yet.
pub(super) fn fresh(user: &UserName, now: Timestamp) -> Result<(SecondFactor, Enrolment), MfaError> {
    let secret: [u8; SECRET_BYTES] = rand::random();
    let recovery_codes = fresh_recovery_codes();
    let factor = SecondFactor {
        user: user.clone(),
        secret: secret.to_vec(),
        enrolled_at: now,
        spent_step: None,
        recovery: recovery_codes.iter().map(|code| recovery_hash(code)).collect(),
        failures: 0,
        failed_at: None,
    };
    let totp = totp(&factor).map_err(|e| MfaError::Totp(e.to_string()))?;
    let uri = totp.to_url().map_err(|e| MfaError::Totp(e.to_string()))?;
    let secret_base32 = totp.secret().to_base32();
    Ok((factor, Enrolment { secret_base32, uri, recovery_codes }))
}

/// Spends a first code of a factor that is not stored yet; recovery codes confirm nothing.
pub(super) fn confirm(factor: &mut SecondFactor, code: &str, now: Timestamp) -> Result<(), LoginFault> {
    let code = Zeroizing::new(normalised(code));
    if code.len() != DIGITS {
        return Err(LoginFault::WrongCode);
    }
    judge(factor, &code, now)?
}

impl Enrolment {
    /// The address as a QR code for a dark terminal, in half blocks: about 45 columns and 23 lines.
    pub fn qr(&self) -> Option<String> {
        use qrcode::render::unicode::Dense1x2;
        let code = qrcode::QrCode::with_error_correction_level(&self.uri, qrcode::EcLevel::L).ok()?;
        let mut drawn = code.render::<Dense1x2>();
        Some(drawn.dark_color(Dense1x2::Light).light_color(Dense1x2::Dark).build())
    }
}

/// Takes the second factor away: the user cannot log in until the next [`enroll`].
///
/// # Errors
/// [`MfaError::NotEnrolled`] if there is none.
pub async fn reset(vault: &Vault, user: &UserName) -> Result<(), MfaError> {
    match vault.remove::<SecondFactor>(user.as_str()).await {
        Err(keystore::Error::NotFound { .. }) => Err(MfaError::NotEnrolled(user.clone())),
        other => Ok(other.map(drop)?),
    }
}

/// Replaces all recovery codes by ten new ones; the old ones stop working.
///
/// # Errors
/// [`MfaError::NotEnrolled`] if the user has no second factor.
pub async fn new_recovery_codes(vault: &Vault, user: &UserName) -> Result<Vec<String>, MfaError> {
    let codes = fresh_recovery_codes();
    let replaced = vault
        .update(user.as_str(), |factor: &mut SecondFactor| {
            factor.recovery = codes.iter().map(|code| recovery_hash(code)).collect();
            Ok::<_, keystore::Error>(())
        })
        .await;
    match replaced {
        Err(keystore::Error::NotFound { .. }) => Err(MfaError::NotEnrolled(user.clone())),
        other => Ok(other.map(|()| codes)?),
    }
}

/// Why an admin's request about a second factor was not done. Nothing changed.
#[derive(Debug, thiserror::Error)]
pub enum MfaError {
    /// No such user.
    #[error("no user {0}")]
    UnknownUser(UserName),
    /// There is one already.
    #[error("{0} has a second factor already; to replace it, first run: keyward mfa reset {0}")]
    Enrolled(UserName),
    /// There is none.
    #[error("{0} has no second factor; to give one, run: keyward mfa enroll {0}")]
    NotEnrolled(UserName),
    /// The TOTP library refused its input: a fault of this program.
    #[error("the second factor cannot be made: {0}")]
    Totp(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] keystore::Error),
}

/// Spends a code of `user`, or counts the failure. Either is durable when this returns.
pub(super) async fn spend(
    vault: &Vault,
    user: &UserName,
    code: &str,
    now: Timestamp,
) -> Result<(), LoginFault> {
    let code = Zeroizing::new(normalised(code));
    // A wrong code must be written too: the outer error would leave the record, and so the count, as it was.
    vault
        .update(user.as_str(), |factor: &mut SecondFactor| {
            if now < barred_until(factor) {
                return Err(LoginFault::TooManyCodes);
            }
            let judged = judge(factor, &code, now)?;
            match judged {
                Ok(()) => (factor.failures, factor.failed_at) = (0, None),
                Err(_) => {
                    factor.failures = factor.failures.saturating_add(1);
                    factor.failed_at = Some(now);
                }
            }
            Ok(judged)
        })
        .await?
}

/// The outer error is a fault of the house, the inner one the peer's.
fn judge(
    factor: &mut SecondFactor,
    code: &str,
    now: Timestamp,
) -> Result<Result<(), LoginFault>, LoginFault> {
    if code.len() != DIGITS {
        return Ok(spend_recovery(factor, code));
    }
    let totp = totp(factor).map_err(|e| LoginFault::Store(e.to_string()))?;
    let given = Sha256::digest(code);
    let step = u64::try_from(now.as_second()).unwrap_or(0) / totp.step();
    // All three steps are always computed and digests compared, so the time taken says nothing about the code.
    let matching = (step.saturating_sub(1)..=step.saturating_add(1))
        .filter(|step| Sha256::digest(totp.generate(step.saturating_mul(totp.step())).to_string()) == given)
        .max();
    Ok(match matching {
        None => Err(LoginFault::WrongCode),
        Some(step) if factor.spent_step.is_some_and(|spent| step <= spent) => Err(LoginFault::SpentCode),
        Some(step) => {
            factor.spent_step = Some(step);
            Ok(())
        }
    })
}

fn spend_recovery(factor: &mut SecondFactor, code: &str) -> Result<(), LoginFault> {
    let given = recovery_hash(code);
    let before = factor.recovery.len();
    factor.recovery.retain(|hash| *hash != given);
    if factor.recovery.len() < before { Ok(()) } else { Err(LoginFault::WrongCode) }
}

/// After five wrong codes in a row: 30 s, then twice as long for each further one, at most 15 minutes. A code refused
/// for this is not counted, so nobody can be kept out for ever.
fn barred_until(factor: &SecondFactor) -> Timestamp {
    let Some(last) = factor.failed_at.filter(|_| factor.failures >= FREE_FAILURES) else {
        return Timestamp::MIN;
    };
    let doubled = (factor.failures - FREE_FAILURES).min(5);
    let wait = (30_i64 << doubled).min(LONGEST_WAIT);
    Timestamp::from_second(last.as_second().saturating_add(wait)).unwrap_or(Timestamp::MAX)
}

fn totp(factor: &SecondFactor) -> Result<Totp, totp_rs::TotpError> {
    // SHA-1, 6 digits, 30 s are the library's defaults and the only set that every authenticator app honours.
    Builder::new()
        .with_secret(factor.secret.clone())
        .with_skew(1)
        .with_issuer(Some("Keyward"))
        .with_account_name(factor.user.as_str())
        .build()
}

fn fresh_recovery_codes() -> Vec<String> {
    (0..RECOVERY_CODES).map(|_| recovery_code()).collect()
}

/// 60 random bits in base32 (no 0, 1, 8 or 9 that could be misread): out of reach at the pace the back-off allows.
fn recovery_code() -> String {
    grouped_code(12)
}

/// `length` (at most 16) random base32 characters in groups of four.
pub(super) fn grouped_code(length: usize) -> String {
    let text = data_encoding::BASE32_NOPAD.encode(&rand::random::<[u8; 10]>()).to_ascii_lowercase();
    let mut code = String::with_capacity(length + length / 4);
    for (n, c) in text.chars().take(length).enumerate() {
        if n > 0 && n % 4 == 0 {
            code.push('-');
        }
        code.push(c);
    }
    code
}

fn recovery_hash(code: &str) -> [u8; 32] {
    Sha256::digest(normalised(code)).into()
}

/// People type codes with spaces, dashes and capitals.
pub(super) fn normalised(code: &str) -> String {
    code.chars()
        .filter(|c| !c.is_whitespace() && *c != '-')
        .take(LONGEST_CODE)
        .map(|c| c.to_ascii_lowercase())
        .collect()
}

/// RFC 4226 §4 R6 recommends 160 bits.
const SECRET_BYTES: usize = 20;
const DIGITS: usize = 6;
const RECOVERY_CODES: usize = 10;
const FREE_FAILURES: u32 = 5;
const LONGEST_WAIT: i64 = 15 * 60;
const LONGEST_CODE: usize = 64;
