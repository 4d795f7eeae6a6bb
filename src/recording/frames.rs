//! The tape as a file: compressed and sealed frames behind a header in clear.
//!
//! `KEYWARD-TAPE-1 {header JSON}\n`, then frames: a big-endian u32 (top bit: the last frame; next bit: compression
//! starts anew here) with the length of the ciphertext, a big-endian u32 with the milliseconds since the session
//! started, the ciphertext. ChaCha20-Poly1305 as in the STREAM construction (Hoang et al. 2015, as age uses it): the
//! nonce is a pass byte (1 in a packed tape), an 10-byte counter and a last-frame byte, the key is the tape's own, the
//! SHA-256 of the header and the eight bytes before the ciphertext are associated data. So frames cannot be changed,
//! moved, dropped, re-timed or taken for another tape's, and an end that is cut off shows.
//! The key lies beside, in `<id>.key`, wrapped with age.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::sync::{Mutex, PoisonError};

use chacha20poly1305::aead::{Aead, AeadInPlace, KeyInit, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Key, Nonce};
use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};
use zstd::stream::raw::{CParameter, DParameter, Decoder, Encoder, InBuffer, Operation as _, OutBuffer};

use super::format::{Header, Record, Records, decode};

const MAGIC: &str = "KEYWARD-TAPE-1 ";
const LAST: u32 = 1 << 31;
const FRESH: u32 = 1 << 30;
/// No frame is longer, sealed or opened: what a reader holds in memory at a time.
const MAX_FRAME: usize = 4 << 20;
const MAX_PLAIN: usize = 16 << 20;
const MAX_HEADER: u64 = 64 << 10;
/// Compression looks back so far: over a frame while a session runs, over the tape's last mebibyte when packed.
const LIVE_WINDOW: u32 = 17;
const PACKED_WINDOW: u32 = 20;
/// Frames of live tapes that are compressed at one time.
const MOST_ENCODERS: usize = 4;

/// zstd's levels for packed tapes: the whole effort for what people typed, and not for bulk.
const PACKED_LEVEL: i32 = 15;
const HURRIED_LEVEL: i32 = 4;

struct Seal {
    cipher: ChaCha20Poly1305,
    header: [u8; 32],
    pass: u8,
    frame: u64,
}

impl Seal {
    fn new(key: &[u8; 32], header_line: &[u8], packed: bool) -> Self {
        let cipher = ChaCha20Poly1305::new(Key::from_slice(key));
        Self { cipher, header: Sha256::digest(header_line).into(), pass: u8::from(packed), frame: 0 }
    }

    fn nonce(&self, last: bool) -> Nonce {
        let mut nonce = [0; 12];
        for (to, from) in nonce.iter_mut().skip(3).zip(self.frame.to_be_bytes()) {
            *to = from;
        }
        if let Some(pass) = nonce.first_mut() {
            *pass = self.pass;
        }
        if let Some(end) = nonce.last_mut() {
            *end = u8::from(last);
        }
        nonce.into()
    }

    fn bound_to(&self, framing: [u8; 8]) -> Vec<u8> {
        [self.header.as_slice(), &framing].concat()
    }
}

/// What is about to become a frame.
pub(super) struct Plain<'a> {
    /// Its records.
    pub(super) records: &'a Records,
    /// It ends the tape.
    pub(super) last: bool,
}

/// Writes a tape: seals frames and appends them to the file.
pub(super) struct Writer {
    sealer: Sealer,
    sink: Sink,
}

/// Makes frames of records.
pub(super) struct Sealer {
    seal: Seal,
    /// Of a packed tape.
    encoder: Option<Encoder<'static>>,
}

/// The file that sealed frames go to, and its running digest.
pub(super) struct Sink {
    file: File,
    digest: Sha256,
    length: u64,
}

impl Writer {
    /// Starts the tape in `file`, an empty one.
    pub(super) fn start(mut file: File, header: &Header, key: &[u8; 32]) -> io::Result<Self> {
        let line = format!("{MAGIC}{}\n", serde_json::to_string(header)?);
        file.write_all(line.as_bytes())?;
        file.sync_all()?;
        let packed = header.packed;
        let seal = Seal::new(key, line.as_bytes(), packed);
        let encoder = if packed { Some(encoder(PACKED_LEVEL, PACKED_WINDOW)?) } else { None };
        let length = line.len() as u64;
        let sink = Sink { file, digest: Sha256::new_with_prefix(line), length };
        Ok(Self { sealer: Sealer { seal, encoder }, sink })
    }

    /// Writes one frame and does not sync it: a packed tape is synced as a whole.
    pub(super) fn frame(&mut self, plain: &Plain<'_>) -> io::Result<()> {
        self.sink.add(&self.sealer.seal(plain)?)
    }

    /// Packs less well, and at a tenth of the work.
    pub(super) fn hurry(&mut self) -> io::Result<()> {
        self.sealer.encoder = Some(encoder(HURRIED_LEVEL, PACKED_WINDOW)?);
        Ok(())
    }

    /// The file so far.
    pub(super) fn sink(&self) -> &Sink {
        &self.sink
    }

    /// Its halves, which may work side by side: one frame is sealed while the one before is synced.
    pub(super) fn split(self) -> (Sealer, Sink) {
        (self.sealer, self.sink)
    }

    /// Goes on in another file.
    #[cfg(test)]
    pub(super) fn redirect(&mut self, file: File) {
        self.sink.file = file;
    }
}

impl Sealer {
    /// The next frame, as it goes into the file.
    pub(super) fn seal(&mut self, plain: &Plain<'_>) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; FRAMING];
        let (start, [heads, bodies]) = plain.records.parts();
        let parts = [&start, heads, bodies];
        match &mut self.encoder {
            Some(own) => squeeze(own, &parts, &mut bytes)?,
            None => squeeze_live(&parts, &mut bytes)?,
        }
        let size = bytes.len() - FRAMING + TAG;
        if size > MAX_FRAME || plain.records.len() > MAX_PLAIN {
            return Err(io::Error::other("a frame is too long"));
        }
        let flags = FRESH | if plain.last { LAST } else { 0 };
        let millis = u32::try_from(plain.records.began).unwrap_or(u32::MAX);
        let framing = framing(u32::try_from(size).map_err(io::Error::other)? | flags, millis);
        let (nonce, bound) = (self.seal.nonce(plain.last), self.seal.bound_to(framing));
        let (before, squeezed) = bytes.split_at_mut(FRAMING);
        before.copy_from_slice(&framing);
        let tag = self.seal.cipher.encrypt_in_place_detached(&nonce, &bound, squeezed);
        bytes.extend_from_slice(&tag.map_err(|_| io::Error::other("a frame could not be sealed"))?);
        self.seal.frame += 1;
        Ok(bytes)
    }
}

impl Sink {
    /// Appends a frame and syncs it.
    pub(super) fn put(&mut self, frame: &[u8]) -> io::Result<()> {
        self.file.write_all(frame)?;
        self.file.sync_data()?;
        self.count(frame);
        Ok(())
    }

    /// Appends a frame.
    fn add(&mut self, frame: &[u8]) -> io::Result<()> {
        self.file.write_all(frame)?;
        self.count(frame);
        Ok(())
    }

    fn count(&mut self, frame: &[u8]) {
        self.digest.update(frame);
        self.length += frame.len() as u64;
    }

    /// SHA-256 of the file so far, hex.
    pub(super) fn digest(&self) -> String {
        HEXLOWER.encode(&self.digest.clone().finalize())
    }

    /// Bytes of the file so far.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Syncs the whole file.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// After a failed write: cuts the file back to its last whole frame, which is what [`Sink::digest`] covers.
    pub(super) fn cut_back(&mut self) -> io::Result<()> {
        self.file.set_len(self.length)
    }
}

fn framing(size: u32, millis: u32) -> [u8; 8] {
    (u64::from(size) << 32 | u64::from(millis)).to_be_bytes()
}

fn encoder(level: i32, window: u32) -> io::Result<Encoder<'static>> {
    let mut encoder = Encoder::new(level)?;
    encoder.set_parameter(CParameter::WindowLog(window))?;
    Ok(encoder)
}

/// Encoders of live tapes. One takes hundreds of kibibytes, and thousands of sessions may run: none keeps its own, and where
/// the disk held up many they wait for one, or the memory of so many would stay in pieces.
static ENCODERS: [Mutex<Option<Encoder<'static>>>; MOST_ENCODERS] =
    [const { Mutex::new(None) }; MOST_ENCODERS];

fn squeeze_live(parts: &[&[u8]], out: &mut Vec<u8>) -> io::Result<()> {
    let [first, ..] = &ENCODERS;
    let free = ENCODERS.iter().find_map(|slot| slot.try_lock().ok());
    let mut slot = free.unwrap_or_else(|| first.lock().unwrap_or_else(PoisonError::into_inner));
    let mut encoder = match slot.take() {
        Some(encoder) => encoder,
        None => encoder(1, LIVE_WINDOW)?,
    };
    squeeze(&mut encoder, parts, out)?;
    *slot = Some(encoder);
    Ok(())
}

/// Appends what the parts are together, compressed without what was seen before, to `out`.
fn squeeze(encoder: &mut Encoder<'static>, parts: &[&[u8]], out: &mut Vec<u8>) -> io::Result<()> {
    encoder.reinit()?;
    let mut chunk = vec![0; 32 << 10];
    for part in parts {
        let mut input = InBuffer::around(part);
        while input.pos() < part.len() {
            let mut room = OutBuffer::around(chunk.as_mut_slice());
            encoder.run(&mut input, &mut room)?;
            let made = room.pos();
            out.extend_from_slice(chunk.get(..made).unwrap_or_default());
        }
    }
    loop {
        let mut room = OutBuffer::around(chunk.as_mut_slice());
        let left = encoder.flush(&mut room)?;
        let made = room.pos();
        out.extend_from_slice(chunk.get(..made).unwrap_or_default());
        if left == 0 {
            return Ok(());
        }
    }
}

fn unfold(decoder: &mut Decoder<'static>, squeezed: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let mut chunk = vec![0; 32 << 10];
    let mut input = InBuffer::around(squeezed);
    loop {
        let before = input.pos();
        let mut room = OutBuffer::around(chunk.as_mut_slice());
        decoder.run(&mut input, &mut room).ok()?;
        let made = room.pos();
        out.extend_from_slice(chunk.get(..made)?);
        if out.len() > MAX_PLAIN {
            return None;
        }
        let done = input.pos() == squeezed.len() && made < chunk.len();
        if done || made == 0 && input.pos() == before {
            return done.then_some(out);
        }
    }
}

/// A frame that does not open: at which byte, and what is wrong.
#[derive(Debug)]
pub(super) struct BadFrame {
    pub(super) offset: u64,
    pub(super) what: &'static str,
}

/// Reads frames in order, one in memory at a time.
pub(super) struct Reader {
    file: BufReader<File>,
    header: Header,
    start: u64,
    seal: Seal,
    decoder: Decoder<'static>,
    offset: u64,
    complete: bool,
    ended: bool,
}

impl Reader {
    /// Reads the header.
    pub(super) fn open(file: File, key: &[u8; 32]) -> Result<Self, BadFrame> {
        let mut file = BufReader::with_capacity(64 << 10, file);
        let (header, line) = header(&mut file).ok_or(BadFrame { offset: 0, what: NOT_OURS })?;
        let mut decoder = Decoder::new().map_err(|_| BadFrame { offset: 0, what: NO_MEMORY })?;
        decoder
            .set_parameter(DParameter::WindowLogMax(PACKED_WINDOW))
            .map_err(|_| BadFrame { offset: 0, what: NO_MEMORY })?;
        let (start, seal) = (line.len() as u64, Seal::new(key, &line, header.packed));
        Ok(Self { file, header, start, seal, decoder, offset: start, complete: false, ended: false })
    }

    /// What stands in clear at the start.
    pub(super) fn header(&self) -> &Header {
        &self.header
    }

    /// Whether the last frame was read, and nothing follows it.
    pub(super) fn complete(&self) -> bool {
        self.complete
    }

    /// The byte up to which frames were opened.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The next frame's records; none at the end. An end that is missing or torn (the last frame of a killed daemon)
    /// leaves [`Reader::complete`] false; a frame that does not open with more behind it is a fault.
    pub(super) fn next(&mut self) -> Result<Option<Vec<Record>>, BadFrame> {
        if self.ended {
            return Ok(None);
        }
        let offset = self.offset;
        let bad = |what| BadFrame { offset, what };
        let Some(next) = self.framing().map_err(|_| bad(UNREADABLE))? else {
            self.ended = true;
            return Ok(None);
        };
        let Next { framing, size, millis, last, fresh } = next;
        let mut sealed = vec![0; size.min(MAX_FRAME)];
        // What lay unsynced when the power failed may be zeros.
        if size == 0 && self.zeros_follow() {
            self.ended = true;
            return Ok(None);
        }
        if size > MAX_FRAME {
            // A torn end may be zeros or rubbish; rubbish with more behind it is no end.
            self.ended = true;
            return Err(bad(CHANGED));
        }
        if self.file.read_exact(&mut sealed).is_err() {
            self.ended = true;
            return Ok(None);
        }
        let payload = Payload { msg: &sealed, aad: &self.seal.bound_to(framing) };
        let Ok(squeezed) = self.seal.cipher.decrypt(&self.seal.nonce(last), payload) else {
            self.ended = true;
            return if self.zeros_follow() { Ok(None) } else { Err(bad(CHANGED)) };
        };
        if fresh {
            self.decoder.reinit().map_err(|_| bad(NO_MEMORY))?;
        }
        let records = unfold(&mut self.decoder, &squeezed).and_then(|plain| decode(&plain, millis.into()));
        let records = records.ok_or(bad("the frame holds no records of this version"))?;
        self.offset += 8 + size as u64;
        self.seal.frame += 1;
        if last {
            self.ended = true;
            if !self.at_end() {
                return Err(BadFrame { offset: self.offset, what: "bytes after the last frame" });
            }
            self.complete = true;
        }
        Ok(Some(records))
    }

    /// Goes to the last frame that begins at or before `millis` and shows the screens without those before it.
    pub(super) fn seek(&mut self, millis: u64) -> Result<(), BadFrame> {
        let bad = |offset| move |_| BadFrame { offset, what: UNREADABLE };
        self.file.seek(SeekFrom::Start(self.start)).map_err(bad(self.start))?;
        let (mut at, mut frame) = (self.start, 0);
        let mut found = (at, frame);
        while let Some(next) = self.framing().map_err(bad(at))? {
            if u64::from(next.millis) > millis {
                break;
            }
            // Only a packed tape has pictures of its screens where a frame begins anew.
            if next.fresh && self.header.packed {
                found = (at, frame);
            }
            at += 8 + next.size as u64;
            frame += 1;
            self.file.seek_relative(next.size as i64).map_err(bad(at))?;
        }
        self.file.seek(SeekFrom::Start(found.0)).map_err(bad(found.0))?;
        (self.offset, self.seal.frame) = found;
        (self.ended, self.complete) = (false, false);
        Ok(())
    }

    fn framing(&mut self) -> io::Result<Option<Next>> {
        let mut framing = [0; 8];
        let mut filled = 0;
        while let Some(room) = framing.get_mut(filled..).filter(|room| !room.is_empty()) {
            match self.file.read(room) {
                Ok(0) => return Ok(None),
                Ok(read) => filled += read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(Some(Next::of(framing)))
    }

    /// Whether nothing but zeros follows, or nothing.
    fn zeros_follow(&mut self) -> bool {
        loop {
            let Ok(bytes) = self.file.fill_buf() else { return false };
            if bytes.is_empty() || bytes.iter().any(|byte| *byte != 0) {
                return bytes.is_empty();
            }
            let zeros = bytes.len();
            self.file.consume(zeros);
        }
    }

    fn at_end(&mut self) -> bool {
        self.file.fill_buf().is_ok_and(<[u8]>::is_empty)
    }
}

struct Next {
    framing: [u8; 8],
    size: usize,
    millis: u32,
    last: bool,
    fresh: bool,
}

impl Next {
    fn of(framing: [u8; 8]) -> Self {
        let both = u64::from_be_bytes(framing);
        let (size, millis) = ((both >> 32) as u32, both as u32);
        let length = (size & !(LAST | FRESH)) as usize;
        Self { framing, size: length, millis, last: size & LAST != 0, fresh: size & FRESH != 0 }
    }
}

/// The header of a tape, and its line as it stands in the file.
pub(super) fn header(file: &mut impl io::BufRead) -> Option<(Header, Vec<u8>)> {
    let mut line = Vec::new();
    file.take(MAX_HEADER).read_until(b'\n', &mut line).ok()?;
    let json = line.strip_prefix(MAGIC.as_bytes())?.strip_suffix(b"\n")?;
    Some((serde_json::from_slice(json).ok()?, line))
}

/// Whether the header was never written whole: no end of its line, or (after a power failure) zeros.
pub(super) fn lacks_header(file: File) -> io::Result<bool> {
    let mut start = Vec::new();
    file.take(MAX_HEADER).read_to_end(&mut start)?;
    Ok((start.len() as u64) < MAX_HEADER && !start.contains(&b'\n'))
}

/// Whether the frames of a tape run, unbroken, to one marked last. Needs no key and proves nothing.
pub(super) fn looks_complete(file: File) -> bool {
    let Ok(mut reader) = Reader::open(file, &[0; 32]) else { return false };
    loop {
        let Ok(Some(next)) = reader.framing() else { return false };
        if reader.file.seek_relative(next.size as i64).is_err() {
            return false;
        }
        if next.last {
            let Ok(at) = reader.file.stream_position() else { return false };
            return reader.file.get_ref().metadata().is_ok_and(|m| m.len() == at);
        }
    }
}

const FRAMING: usize = 8;
const TAG: usize = 16;
const NOT_OURS: &str = "not a tape of this version";
const NO_MEMORY: &str = "no memory to unpack it";
const UNREADABLE: &str = "it cannot be read";
const CHANGED: &str = "the frame does not open: it was changed, moved or removed";
