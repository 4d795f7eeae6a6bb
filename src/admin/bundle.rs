//! `sessions bundle`: a signed archive for a case file, that proves itself with tar, sha256sum and ssh-keygen.
//!
//! Its members stand in a fixed order; `SHA256SUMS` names all of them but itself and its signature (SSHSIG by the audit
//! key, namespace [`NAMESPACE`]). The layout of `tapes/` is that of a state directory.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::replay::viewed;
use super::sessions::{parsed, reading};
use super::steps::Steps;
use super::{Caller, Fault, Output, Progress};
use crate::audit::Event;
use crate::recording::{SessionId, SessionStatus, TapeError, Tapes};
use crate::session::House;

/// SSHSIG namespace of the manifest (PROTOCOL.sshsig).
pub(super) const NAMESPACE: &str = "keyward-bundle";
pub(super) const MANIFEST: &str = "SHA256SUMS";
pub(super) const SIGNATURE: &str = "SHA256SUMS.sig";
pub(super) const EVENTS: &str = "events.ndjson";

/// Sends the archive of `ids` to `out`.
pub(super) async fn make(
    (house, caller): (&House, &Caller),
    ids: &[String],
    out: &mut Output,
) -> Result<(), Fault> {
    if out.width().is_some() {
        return Err(Fault::usage("an archive is no text: name a file with --output, or redirect: … > FILE"));
    }
    let ids: BTreeSet<SessionId> = ids.iter().map(|id| parsed(id)).collect::<Result<_, _>>()?;
    for id in &ids {
        if super::sessions::summary(house, &id.to_string()).await?.status == SessionStatus::Live {
            return Err(Fault::conflict(format!("session {id} is still live; bundle it when it has ended")));
        }
    }
    let names: Vec<String> = ids.iter().map(ToString::to_string).collect();
    let now = Timestamp::now();
    let unwritten = |e: crate::audit::AuditError| Fault::error(e.to_string());
    let event = Event::RecordingsBundled { by: caller.name(), sessions: names.clone() };
    house.trail.append(event, now).await.map_err(unwritten)?;
    for id in &ids {
        viewed(house.into(), caller, *id).await?;
    }
    // So that a signature covers all that the archive tells.
    house.trail.checkpoint(now).await.map_err(unwritten)?;
    let (trail, about) = (Arc::clone(&house.trail), names.iter().cloned().collect());
    let excerpt = reading(house, move |_| Ok(trail.excerpt(&about))).await?;
    let excerpt = excerpt.map_err(|e| Fault::tampering(e.to_string()))?;
    let key = house.signers.audit.public_key().to_openssh().map_err(|e| Fault::error(e.to_string()))?;
    let key = key.trim_end().to_owned();
    let mut members = vec![
        Member::text("README.txt", readme(&names, now)),
        Member::text("audit_key.pub", format!("{key}\n")),
        Member::text("allowed_signers", format!("keyward namespaces=\"{NAMESPACE},keyward-audit\" {key}\n")),
        Member::text(EVENTS, excerpt.events),
    ];
    let progress = Progress::default();
    progress.expect(ids.iter().map(|id| house.tapes.length(*id)).sum());
    let counts = progress.clone();
    let files = reading(house, move |tapes| files(tapes, &ids, &excerpt.checkpoints, &counts));
    members.extend(out.meanwhile("hashing", &progress, files).await?);
    let manifest: String =
        members.iter().map(|member| format!("{}  {}\n", member.digest, member.name)).collect();
    let signature = house.signers.audit.sshsig(NAMESPACE, manifest.as_bytes());
    let signature = signature.map_err(|e| Fault::error(e.to_string()))?;
    members.push(Member::text(MANIFEST, manifest));
    members.push(Member::text(SIGNATURE, signature));
    let total = members.iter().map(|member| member.size).sum();
    let (mut pieces, mut sent) = (archive(members, now), 0);
    while let Some(piece) = pieces.next().await? {
        sent += piece.len() as u64;
        out.bytes(piece).await?;
        out.sent("bundling", (sent, total));
    }
    Ok(())
}

struct Member {
    name: String,
    size: u64,
    digest: String,
    content: Content,
}

enum Content {
    Bytes(Vec<u8>),
    File(PathBuf),
}

impl Member {
    fn text(name: &str, text: String) -> Self {
        Self::bytes(name.to_owned(), text.into_bytes())
    }

    fn bytes(name: String, bytes: Vec<u8>) -> Self {
        let digest = hex(Sha256::digest(&bytes).as_slice());
        Self { name, size: bytes.len() as u64, digest, content: Content::Bytes(bytes) }
    }
}

/// Tapes with their keys and summaries, then the checkpoints. Reads files.
fn files(
    tapes: &Tapes,
    ids: &BTreeSet<SessionId>,
    checkpoints: &[PathBuf],
    progress: &Progress,
) -> Result<Vec<Member>, TapeError> {
    let mut members = Vec::new();
    let whole = |path: &Path| std::fs::read(path).map_err(|e| TapeError::file(path, e));
    for id in ids {
        let tape = tapes.tape_file(*id);
        let (digest, size) = hashed(&tape, progress)?;
        members.push(Member {
            name: format!("tapes/{id}.tape"),
            size,
            digest,
            content: Content::File(tape.clone()),
        });
        members.push(Member::bytes(format!("tapes/{id}.key"), whole(&tape.with_extension("key"))?));
        members.push(Member::bytes(format!("tapes/{id}.json"), whole(&tapes.summary_file(*id))?));
    }
    for path in checkpoints {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        members.push(Member::bytes(format!("checkpoints/{name}"), whole(path)?));
    }
    Ok(members)
}

fn hashed(path: &Path, progress: &Progress) -> Result<(String, u64), TapeError> {
    let mut file = File::open(path).map_err(|e| TapeError::file(path, e))?;
    let (mut hash, mut size, mut chunk) = (Sha256::new(), 0, vec![0; PIECE]);
    loop {
        let read = file.read(&mut chunk).map_err(|e| TapeError::file(path, e))?;
        if read == 0 {
            return Ok((hex(&hash.finalize()), size));
        }
        size += read as u64;
        progress.did(read as u64);
        hash.update(chunk.get(..read).unwrap_or_default());
    }
}

/// The archive, piece by piece: POSIX.1-1988 headers, names and sizes fit them.
fn archive(members: Vec<Member>, now: Timestamp) -> Steps<Vec<u8>> {
    let mut members = VecDeque::from(members);
    let mut open: Option<(PathBuf, File, u64, u64)> = None;
    let mut ended = false;
    Steps::of(move || {
        if let Some((path, file, left, size)) = &mut open {
            let mut piece = vec![0; PIECE.min(usize::try_from(*left).unwrap_or(PIECE))];
            file.read_exact(&mut piece).map_err(|e| TapeError::file(path, e))?;
            *left -= piece.len() as u64;
            if *left == 0 {
                piece.resize(piece.len() + padding(*size), 0);
                open = None;
            }
            return Ok(Some(piece));
        }
        let Some(member) = members.pop_front() else {
            return Ok((!std::mem::replace(&mut ended, true)).then(|| vec![0; 1024]));
        };
        let mut piece = header(&member, now).map_err(|e| TapeError::file(Path::new(&member.name), e))?;
        match member.content {
            Content::Bytes(bytes) => {
                piece.extend_from_slice(&bytes);
                piece.resize(piece.len() + padding(member.size), 0);
            }
            Content::File(path) => {
                let file = File::open(&path).map_err(|e| TapeError::file(&path, e))?;
                open = (member.size > 0).then_some((path, file, member.size, member.size));
            }
        }
        Ok(Some(piece))
    })
}

fn header(member: &Member, now: Timestamp) -> std::io::Result<Vec<u8>> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_path(&member.name)?;
    header.set_size(member.size);
    header.set_mode(0o600);
    header.set_mtime(u64::try_from(now.as_second()).unwrap_or(0));
    header.set_cksum();
    Ok(header.as_bytes().to_vec())
}

fn padding(size: u64) -> usize {
    usize::try_from(size.next_multiple_of(512) - size).unwrap_or(0)
}

pub(super) fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

fn readme(sessions: &[String], now: Timestamp) -> String {
    format!(
        "Recorded sessions, taken out of a Keyward bastion at {now:.0}:\n\n  {}\n\n{README}",
        sessions.join("\n  ")
    )
}

const README: &str = "\
What is here
  tapes/ID.tape     the recording, sealed; ID.key its key, wrapped to the auditors (age); ID.json its summary
  events.ndjson     every event of the audit trail about these sessions, each with its hash in the chain
  checkpoints/      the signed heads of the chain from then on (N.json, and its signature N.sig)
  audit_key.pub     the key that signed. Compare it with the copy that you keep elsewhere: whoever can replace this
                    archive can replace that file too
  SHA256SUMS(.sig)  the digests of all of it, signed

How to check it, with tools that every system has, in the folder it was unpacked to
  sha256sum -c SHA256SUMS
  ssh-keygen -Y verify -f allowed_signers -I keyward -n keyward-bundle -s SHA256SUMS.sig < SHA256SUMS
  for c in checkpoints/*.json; do
    ssh-keygen -Y verify -f allowed_signers -I keyward -n keyward-audit -s ${c%.json}.sig < $c; done
  The hash of an event is the SHA-256 of: its \"prev\", a space, its \"seq\", a space, and the line without its \"hash\".

How to check all of that at once, unpacked or not, and that events, summaries and tapes belong together
  keyward sessions verify --bundle FILE.tar --trust AUDIT_KEY.pub     (exit code 10: something was changed)

How to look at a session, with the auditors' identity
  keyward sessions play ID --state . --identity auditors.key          (also: transcript, export)
";
const PIECE: usize = 256 << 10;
