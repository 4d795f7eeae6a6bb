//! The second factor: authenticator codes (TOTP, RFC 6238) and recovery codes.
//!
//! Owns enrolment, reset and the spending of codes. A code is spent by compare-and-set and durable before anyone is
//! let through, so it works once, also for two connections at the same instant. A factor is pending until a login was
//! completed with one of its codes; until then the one that it replaces goes on. Never shows a secret after enrolment
//! and never says before a login how near a code was.

use jiff::Timestamp;
use keystore::{NextFactor, SecondFactor, User, UserName, Vault};
use sha2::{Digest, Sha256};
use totp_rs::{Builder, Totp};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::{Authenticated, LoginFault};

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

/// Gives the user a second factor, pending; durable when it returns.
///
/// # Errors
/// [`MfaError::UnknownUser`]; [`MfaError::Enrolled`] if there is one already: [`replace`] or [`reset`] it.
pub async fn enroll(vault: &Vault, user: &UserName, now: Timestamp) -> Result<Enrolment, MfaError> {
    if vault.get::<User>(user.as_str()).await?.is_none() {
        return Err(MfaError::UnknownUser(user.clone()));
    }
    let (mut factor, enrolment) = fresh(user, now)?;
    factor.pending = true;
    match vault.insert(&factor).await {
        Err(keystore::Error::Exists { .. }) => Err(MfaError::Enrolled(user.clone())),
        Err(other) => Err(other.into()),
        Ok(()) => Ok(enrolment),
    }
}

/// Gives the user the next second factor. The one in use goes on until a login was completed with a code of the next;
/// one that is pending itself is replaced at once.
///
/// # Errors
/// [`MfaError::NotEnrolled`] if there is none: [`enroll`] one.
pub async fn replace(vault: &Vault, user: &UserName, now: Timestamp) -> Result<Enrolment, MfaError> {
    let (mut factor, enrolment) = fresh(user, now)?;
    factor.pending = true;
    let next = NextFactor {
        secret: factor.secret.clone(),
        enrolled_at: now,
        spent_step: None,
        recovery: factor.recovery.clone(),
    };
    let staged = vault
        .update(user.as_str(), |held: &mut SecondFactor| {
            match held.pending {
                true => held.clone_from(&factor),
                false => held.next = Some(Box::new(next.clone())),
            }
            Ok::<_, keystore::Error>(())
        })
        .await;
    match staged {
        Err(keystore::Error::NotFound { .. }) => Err(MfaError::NotEnrolled(user.clone())),
        other => Ok(other.map(|()| enrolment)?),
    }
}

/// The factor whose first code `login` was made with counts from now on; one that it replaces is gone. Nothing happens
/// if another was enrolled meanwhile.
///
/// # Errors
/// The store's.
pub async fn confirm(vault: &Vault, login: &Authenticated) -> Result<(), LoginFault> {
    let Some(enrolled_at) = login.confirms else { return Ok(()) };
    vault
        .update(login.user.as_str(), |factor: &mut SecondFactor| {
            if factor.enrolled_at == enrolled_at {
                factor.pending = false;
            }
            if let Some(mut next) = factor.next.take_if(|next| next.enrolled_at == enrolled_at) {
                factor.secret = std::mem::take(&mut next.secret);
                factor.recovery = std::mem::take(&mut next.recovery);
                (factor.enrolled_at, factor.spent_step) = (next.enrolled_at, next.spent_step);
            }
            Ok(())
        })
        .await
}

/// What the owner of `factor` should know of the authenticator's clock (RFC 6238 §6). To be told to who is logged in
/// only: before that it would tell a thief that a refused code was nearly right.
pub fn clock_notice(factor: &SecondFactor) -> Option<String> {
    let drift = factor.drift?;
    let way = if drift < 0 { "behind" } else { "ahead" };
    Some(format!(
        "The clock of your authenticator is about {} seconds {way}; let the phone set its time itself, or codes will be refused.",
        drift.abs()
    ))
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
        pending: false,
        next: None,
        drift: None,
    };
    let totp = totp(user, &factor.secret).map_err(|e| MfaError::Totp(e.to_string()))?;
    let uri = totp.to_url().map_err(|e| MfaError::Totp(e.to_string()))?;
    let secret_base32 = totp.secret().to_base32();
    Ok((factor, Enrolment { secret_base32, uri, recovery_codes }))
}

/// Spends a first code of a factor that is not stored yet; recovery codes confirm nothing.
pub(super) fn try_out(factor: &mut SecondFactor, code: &str, now: Timestamp) -> Result<(), LoginFault> {
    let code = Zeroizing::new(normalised(code));
    if code.len() != DIGITS {
        return Err(LoginFault::WrongCode);
    }
    judge(factor, &code, now)?.map(drop)
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
    #[error(
        "{0} is enrolled already. For a new authenticator: keyward mfa enroll {0} --replace; if the one in use is lost: keyward mfa reset {0}"
    )]
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

/// Spends a code of `user`, or counts the failure. Either is durable when this returns. If it is the first code of a
/// factor, returns when that was enrolled: a login completed with it confirms it.
pub(super) async fn spend(
    vault: &Vault,
    user: &UserName,
    code: &str,
    now: Timestamp,
) -> Result<Option<Timestamp>, LoginFault> {
    let code = Zeroizing::new(normalised(code));
    // A wrong code must be written too: the outer error would leave the record, and so the count, as it was.
    vault
        .update(user.as_str(), |factor: &mut SecondFactor| {
            let gone_back = factor.failed_at.is_some_and(|at| at > now);
            if gone_back {
                // The clock went back, or was ahead then: from now on nobody waits for longer than the longest wait.
                factor.failed_at = Some(now);
            }
            if now < barred_until(factor) {
                let barred = LoginFault::TooManyCodes;
                return if gone_back { Ok(Err(barred)) } else { Err(barred) };
            }
            let judged = judge(factor, &code, now)?;
            match judged {
                Ok(_) => (factor.failures, factor.failed_at) = (0, None),
                Err(_) => {
                    factor.failures = factor.failures.saturating_add(1);
                    factor.failed_at = Some(now);
                }
            }
            Ok(judged)
        })
        .await?
}

/// The outer error is a fault of the house, the inner one the peer's. What is right may confirm a factor, as [`spend`]
/// says.
fn judge(
    factor: &mut SecondFactor,
    code: &str,
    now: Timestamp,
) -> Result<Result<Option<Timestamp>, LoginFault>, LoginFault> {
    if code.len() != DIGITS {
        return Ok(spend_recovery(factor, code).map(|()| None));
    }
    let held = nearest(&factor.user, &factor.secret, code, now)?;
    let next = match &factor.next {
        Some(next) => nearest(&factor.user, &next.secret, code, now)?,
        None => None,
    };
    if let (Some(near), Some(next)) = (next.filter(Near::counts), factor.next.as_mut()) {
        let enrolled_at = next.enrolled_at;
        return Ok(near.spend(&mut next.spent_step).map(|()| Some(enrolled_at)));
    }
    let Some(near) = held else { return Ok(Err(LoginFault::WrongCode)) };
    factor.drift = near.drift(factor.drift);
    if !near.counts() {
        return Ok(Err(LoginFault::WrongCode));
    }
    let first = factor.pending.then_some(factor.enrolled_at);
    Ok(near.spend(&mut factor.spent_step).map(|()| first))
}

/// The time step of a code, by its distance from now.
#[derive(Clone, Copy)]
struct Near {
    step: u64,
    /// In steps; negative: the code is of an earlier one.
    off: i64,
    /// Seconds since the step of now began.
    into: i64,
}

/// The step nearest to now whose code is `code`. All steps are always computed and digests compared, so the time taken
/// says nothing about the code.
fn nearest(user: &UserName, secret: &[u8], code: &str, now: Timestamp) -> Result<Option<Near>, LoginFault> {
    let totp = totp(user, secret).map_err(|e| LoginFault::Store(e.to_string()))?;
    let given = Sha256::digest(code);
    let (seconds, length) = (now.as_second().max(0), i64::try_from(totp.step()).unwrap_or(30));
    let (current, into) = (seconds / length, seconds % length);
    let steps = (-LOOKED_AT..=LOOKED_AT).filter_map(|off| Some((u64::try_from(current + off).ok()?, off)));
    let matching = steps
        .filter(|(step, _)| {
            Sha256::digest(totp.generate(step.saturating_mul(totp.step())).to_string()) == given
        })
        .map(|(step, off)| Near { step, off, into })
        // Of two that are as near, the later: the earlier is spent with it.
        .min_by_key(|near| (near.off.abs(), -near.off));
    Ok(matching)
}

impl Near {
    /// RFC 6238 §5.2: one step either way.
    fn counts(&self) -> bool {
        self.off.abs() <= 1
    }

    fn spend(self, spent: &mut Option<u64>) -> Result<(), LoginFault> {
        if spent.is_some_and(|spent| self.step <= spent) {
            return Err(LoginFault::SpentCode);
        }
        *spent = Some(self.step);
        Ok(())
    }

    /// What this code tells of the authenticator's clock, given what was known. A code of the last step may have been
    /// right while it was typed.
    fn drift(self, known: Option<i64>) -> Option<i64> {
        match self.off {
            0 => None,
            -1 if self.into < TYPING => known,
            off => Some(off * 30 + 15 - self.into),
        }
    }
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

fn totp(user: &UserName, secret: &[u8]) -> Result<Totp, totp_rs::TotpError> {
    // SHA-1, 6 digits, 30 s are the library's defaults and the only set that every authenticator app honours.
    Builder::new()
        .with_secret(secret.to_vec())
        .with_skew(1)
        .with_issuer(Some("Keyward"))
        .with_account_name(user.as_str())
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
/// Codes of so many steps before and after now are recognised, to tell of a clock; only those beside now count.
const LOOKED_AT: i64 = 10;
/// Seconds that a code may take from the screen to here.
const TYPING: i64 = 20;
const RECOVERY_CODES: usize = 10;
const FREE_FAILURES: u32 = 5;
const LONGEST_WAIT: i64 = 15 * 60;
const LONGEST_CODE: usize = 64;
