//! Heads elsewhere: each signed checkpoint as one line of a file on another disk. Whoever rolls back or rewrites the whole
//! state directory, signer and all, must find this file too.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use keystore::ssh::{PublicKey, SshSig};
use serde::{Deserialize, Serialize};

use super::trail::NAMESPACE;
use super::verify::{Fault, Statement};

#[derive(Serialize, Deserialize)]
struct Head {
    statement: String,
    signature: String,
}

/// Appends and syncs one head.
pub(super) fn append(file: &Path, statement: &str, signature: &str) -> io::Result<()> {
    let head = Head { statement: statement.to_owned(), signature: signature.to_owned() };
    let line = format!("{}\n", serde_json::to_string(&head)?);
    let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(file)?;
    file.write_all(line.as_bytes())?;
    file.sync_all()
}

/// Every head in `file` whose signature holds: number and hash of the event it covers. A last line that was cut off in the
/// middle counts for nothing.
pub(super) fn read(file: &Path, key: &PublicKey) -> Result<Vec<(u64, String)>, Fault> {
    let fault =
        |offset: usize, what: String| Fault { file: file.to_owned(), offset: offset as u64, seq: None, what };
    let text = fs::read_to_string(file).map_err(|e| fault(0, e.to_string()))?;
    let (mut heads, mut offset) = (Vec::new(), 0);
    for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        let wrong = |what: &str| fault(offset, what.to_owned());
        let head: Head = serde_json::from_str(line).map_err(|_| wrong("not a head of an audit trail"))?;
        let sig = SshSig::from_pem(head.signature.as_bytes()).map_err(|_| wrong("not an SSHSIG"))?;
        key.verify(NAMESPACE, head.statement.as_bytes(), &sig)
            .map_err(|_| wrong("the signature of this head does not hold"))?;
        let said: Statement = serde_json::from_str(&head.statement).map_err(|_| wrong("not a checkpoint"))?;
        heads.push((said.seq, said.hash));
        offset += line.len();
    }
    Ok(heads)
}
