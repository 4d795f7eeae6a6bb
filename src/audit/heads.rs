//! Heads elsewhere: each signed checkpoint as one line of a file on another disk. Whoever rolls back or rewrites the whole
//! state directory, signer and all, must find this file too.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
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
    let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(file)?;
    // A line that a crash tore stays alone.
    let before = if ends_a_line(&mut file)? { "" } else { "\n" };
    let line = format!("{before}{}\n", serde_json::to_string(&head)?);
    file.write_all(line.as_bytes())?;
    file.sync_all()
}

fn ends_a_line(file: &mut File) -> io::Result<bool> {
    if file.metadata()?.len() == 0 {
        return Ok(true);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

/// Every head in `file`, in order: number and hash of the event it covers. A line that a crash cut off counts for nothing;
/// one that was written to since is a fault, as is a signature that does not hold.
pub(super) fn read(file: &Path, key: &PublicKey) -> Result<Vec<(u64, String)>, Fault> {
    let fault =
        |offset: usize, what: String| Fault { file: file.to_owned(), offset: offset as u64, seq: None, what };
    let open = |e: io::Error| {
        let gone = e.kind() == io::ErrorKind::NotFound;
        fault(0, if gone { GONE.to_owned() } else { e.to_string() })
    };
    let mut text = BufReader::new(File::open(file).map_err(open)?);
    let (mut heads, mut offset) = (Vec::new(), 0);
    loop {
        let mut line = Vec::new();
        let read = (&mut text).take(LONGEST_LINE).read_until(b'\n', &mut line);
        if read.map_err(|e| fault(offset, e.to_string()))? == 0 {
            break;
        }
        let wrong = |what: &str| fault(offset, what.to_owned());
        let (whole, text_of) = match line.strip_suffix(b"\n") {
            Some(text) => (true, text),
            None => (false, line.as_slice()),
        };
        let head = match serde_json::from_slice::<Head>(text_of) {
            Ok(head) if whole => head,
            // The start of a head: what a crash leaves.
            Err(cut) if !cut.is_eof() => return Err(wrong("this line is no head: it was edited")),
            Ok(_) | Err(_) => {
                offset += line.len();
                continue;
            }
        };
        let sig = SshSig::from_pem(head.signature.as_bytes()).map_err(|_| wrong("not an SSHSIG"))?;
        key.verify(NAMESPACE, head.statement.as_bytes(), &sig)
            .map_err(|_| wrong("the signature of this head does not hold"))?;
        let said: Statement = serde_json::from_str(&head.statement).map_err(|_| wrong("not a checkpoint"))?;
        heads.push((said.seq, said.hash));
        offset += line.len();
    }
    Ok(heads)
}

/// A head takes some hundred bytes.
const LONGEST_LINE: u64 = 64 << 10;
const GONE: &str = "the file of heads is gone; the daemon begins one at its start";
