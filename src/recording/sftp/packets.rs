//! A stream of sftp cut into packets, and their fields.

use super::{DATA, HEAD, WRITE};

/// One direction, cut into packets. `head` holds what was seen of the packet, up to [`HEAD`]; the rest is content.
#[derive(Default)]
pub(super) struct Packets {
    pub(super) head: Vec<u8>,
    /// Bytes of the packet that are still to come, once its length is known.
    pub(super) left: Option<u64>,
    pub(super) content: Option<(Vec<u8>, u64, u64)>,
}

impl Packets {
    pub(super) fn end(&mut self) {
        self.head.clear();
        (self.left, self.content) = (None, None);
    }

    /// Whether the head is whole and content follows.
    pub(super) fn content_begins(&self) -> bool {
        matches!(self.head.first(), Some(&WRITE | &DATA)) && self.head.len() >= self.head_ends()
    }

    /// How long the head is, as far as it is known from what there is of it.
    pub(super) fn head_ends(&self) -> usize {
        match self.head.first() {
            None => 1,
            // Kind, id, length of the data.
            Some(&DATA) => 9,
            // Kind, id, handle, offset, length of the data.
            Some(&WRITE) => match self.head.get(5..9).and_then(|size| <[u8; 4]>::try_from(size).ok()) {
                Some(size) => 9 + (u32::from_be_bytes(size) as usize).min(HEAD) + 12,
                None => 9,
            },
            Some(_) => usize::MAX,
        }
    }
}

pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn number(&mut self) -> Option<u32> {
        let (number, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*number))
    }
    pub(super) fn long(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_be_bytes(*number))
    }
    pub(super) fn text(&mut self) -> Option<&'a [u8]> {
        let size = self.number()? as usize;
        let (text, rest) = self.0.split_at_checked(size)?;
        self.0 = rest;
        Some(text)
    }
}

/// What an ATTRS field changes (§5).
pub(super) fn attributes(fields: &mut Fields<'_>) -> String {
    let flags = fields.number().unwrap_or(0);
    let mut said = Vec::new();
    if flags & 1 != 0 {
        said.push(format!("size {}", fields.long().unwrap_or(0)));
    }
    if flags & 2 != 0 {
        said.push(format!("owner {}:{}", fields.number().unwrap_or(0), fields.number().unwrap_or(0)));
    }
    if flags & 4 != 0 {
        said.push(format!("mode {:04o}", fields.number().unwrap_or(0) & 0o7777));
    }
    if flags & 8 != 0 {
        said.push("times".to_owned());
    }
    said.join(", ")
}
