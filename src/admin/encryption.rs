//! `encryption …`: the master key, changed while the daemon serves.
//!
//! Key files are read and made by the daemon, which must be able to read them at its next start. Over SSH nobody names
//! files of the bastion.

use std::path::Path;

use jiff::Timestamp;
use keystore::Successor;
use keystore::seal::{MasterKey, MasterKeySource, SealError};
use serde_json::json;

use super::{Caller, Encryption, Fault, Output, Progress};
use crate::config::Config;
use crate::rotation::{finish_rekeying, rekey};
use crate::session::House;

pub(super) async fn run(
    house: &House,
    caller: &Caller,
    command: Encryption,
    out: &mut Output,
) -> Result<(), Fault> {
    match command {
        Encryption::Status => {
            let (id, trouble) = (house.vault.master_key_id(), next_start(house));
            let value = json!({ "master_key": id, "next_start": trouble.is_none(), "trouble": trouble });
            let next = trouble.unwrap_or_else(|| "The next start finds it.".to_owned());
            out.either(&value, format!("The store is sealed under master key {id}. {next}")).await
        }
        Encryption::Rotate { old_key, new_key } => {
            if !matches!(caller, Caller::Operator { .. }) {
                return Err(Fault::denied(
                    "the master key is changed on the bastion itself: keyward encryption rotate …",
                ));
            }
            rotate(house, caller, (&old_key, &new_key), out).await
        }
    }
}

async fn rotate(
    house: &House,
    caller: &Caller,
    (old_file, new_file): (&Path, &Path),
    out: &mut Output,
) -> Result<(), Fault> {
    let now = Timestamp::now();
    let old = load(old_file)?;
    let current = house.vault.master_key_id();
    if old.id() != current {
        return finished(house, (&current, old_file, new_file), out).await;
    }
    let new = match load(new_file) {
        Ok(key) => key,
        Err(_) if new_file.symlink_metadata().is_err() => {
            let key = MasterKey::generate()?;
            key.write_new(new_file)?;
            key
        }
        Err(fault) => return Err(fault),
    };
    if new.id() == current {
        return Err(Fault::usage("both files hold the same key; nothing was changed"));
    }
    let to = Successor { key: new, place: new_file.display().to_string(), by: caller.name() };
    let progress = Progress::default();
    let counts = |done, all| progress.is(done, all);
    let rekeyed = rekey(&house.vault, &house.trail, to, (now, &counts));
    let done = out.meanwhile("sealing anew", &progress, rekeyed).await;
    let done = done.map_err(|e| unfinished(&e.to_string()))?;
    let records = done.map_or(0, |done| done.records);
    let id = house.vault.master_key_id();
    let value = json!({ "from": current, "to": id, "records": records, "new_key": new_file });
    out.either(&value, told(house, (records, &id), (old_file, new_file))).await
}

/// The old key is not the store's: perhaps because all is done already, up to what a fault kept from its end.
async fn finished(
    house: &House,
    (current, old_file, new_file): (&str, &Path, &Path),
    out: &mut Output,
) -> Result<(), Fault> {
    if load(new_file).is_ok_and(|key| key.id() == current) {
        let done = finish_rekeying(&house.vault, &house.trail, Timestamp::now()).await;
        let records = done.map_err(|e| unfinished(&e.to_string()))?.map_or(0, |done| done.records);
        let value = json!({ "from": null, "to": current, "records": records, "new_key": new_file });
        return out.either(&value, told(house, (records, current), (old_file, new_file))).await;
    }
    Err(Fault::denied(format!(
        "{} does not hold the store's master key, which is {current}; nothing was changed",
        old_file.display()
    )))
}

/// What holds now, and what the operator must do, in this order.
fn told(house: &House, (records, id): (u64, &str), (old, new): (&Path, &Path)) -> String {
    let config = house.config();
    let file = config.path.display();
    let next = match next_start(house) {
        None => format!("{file} names it already."),
        Some(_) => format!(
            "In {file}: master_key = \"file:{}\". Without that the next start is refused.",
            new.display()
        ),
    };
    let (old, new) = (old.display(), new.display());
    format!(
        "The store is sealed under master key {id}: {records} values anew, and no other in its files.\n\n1. {next}\n\
         2. Back up {new}, where the store's backup is not.\n\
         3. Backups of the store from before still open under {old}: destroy them, or keep that key away from them.\n\
         4. If the old key was stolen, whoever had a copy of the store has its secrets too: rotate the CAs (keyward ca \
         rotate),\n   managed credentials (keyward instances rotate) and second factors (keyward mfa reset)."
    )
}

/// Why the next start would be refused, if it would be: the configuration names another key.
pub(super) fn next_start(house: &House) -> Option<String> {
    let config = house.config();
    let file = config.path.display();
    let source = match Config::load(&config.path) {
        Ok(config) => config.master_key,
        Err(fault) => return Some(format!("the next start is refused: {fault}")),
    };
    match MasterKey::load(&source) {
        Ok(key) if key.id() == house.vault.master_key_id() => None,
        Ok(key) => Some(format!(
            "the next start is refused: {file} names {source} as master_key, which is {}; the store is sealed under {}",
            key.id(),
            house.vault.master_key_id()
        )),
        Err(fault) => Some(format!("the next start is refused: {fault}")),
    }
}

fn load(file: &Path) -> Result<MasterKey, Fault> {
    Ok(MasterKey::load(&MasterKeySource::File(file.to_owned()))?)
}

fn unfinished(why: &str) -> Fault {
    Fault::error(format!(
        "the change of the master key did not come to its end: {why}. Keep both files; say the same again, or restart: the \
         daemon says which key it needs, and finishes what is left"
    ))
}

impl From<SealError> for Fault {
    fn from(error: SealError) -> Self {
        Fault::error(error.to_string())
    }
}
