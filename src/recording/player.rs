//! Playing a tape from any moment: the screen as it stood then, and what followed.

use super::cast::{Cast, CastEvent};
use super::drawing::Drawing;
use super::format::{Record, What};
use super::message::SessionId;
use super::screen::Screens;
use super::tapes::{TapeError, Tapes};
use super::told::Frames;

/// A tape that is being played, an event at a time.
pub struct Playback {
    frames: Frames,
    cast: Cast,
    waiting: std::vec::IntoIter<Record>,
    first: Option<CastEvent>,
    ended: bool,
}

impl Playback {
    /// Plays the tape of an ended session from `from`, in milliseconds since its start. Reads files.
    ///
    /// # Errors
    /// As [`Tapes::frames`].
    pub fn from(tapes: &Tapes, id: SessionId, from: u64) -> Result<Self, TapeError> {
        let cast = view(tapes, id)?;
        let mut frames = tapes.frames(id, from)?;
        let (mut screens, mut waiting) = (Screens::default(), Vec::new());
        let mut drawn = cast;
        while let Some(records) = frames.next_frame()? {
            let mut records = records.into_iter();
            let mut reached = false;
            for record in records.by_ref() {
                if record.millis >= from {
                    waiting.push(record);
                    reached = true;
                    break;
                }
                // The last picture stays, as on the user's own terminal.
                if !matches!(record.what, What::Closed(_)) {
                    screens.watch(&record);
                }
                drop(drawn.event(&record));
            }
            if reached {
                waiting.extend(records);
                break;
            }
        }
        let picture = screens.pictures().into_iter().find(|(channel, ..)| Some(*channel) == drawn.channel());
        let first = picture.filter(|_| from > 0).map(|(_, _, dump)| {
            // Reset, so that what the player's terminal shows does not shine through.
            (from, 'o', fresh(&dump))
        });
        Ok(Self { frames, cast: drawn, waiting: waiting.into_iter(), first, ended: false })
    }

    /// What it shows, for a header.
    pub fn cast(&self) -> &Cast {
        &self.cast
    }

    /// The next event; none at the end.
    ///
    /// # Errors
    /// [`TapeError::Damaged`].
    pub fn next_event(&mut self) -> Result<Option<CastEvent>, TapeError> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        loop {
            for record in self.waiting.by_ref() {
                if let Some(event) = self.cast.event(&record) {
                    return Ok(Some(event));
                }
            }
            if self.ended {
                return Ok(None);
            }
            match self.frames.next_frame()? {
                Some(records) => self.waiting = records.into_iter(),
                None => {
                    self.ended = true;
                    let rest = self.cast.rest();
                    return Ok(rest.into_iter().next());
                }
            }
        }
    }
}

/// The view of a tape, as its beginning tells: which channel has a terminal, and how large that was.
fn view(tapes: &Tapes, id: SessionId) -> Result<Cast, TapeError> {
    if !tapes.summary(id)?.channels.iter().any(|channel| channel.terminal) {
        return Ok(Cast::without_terminal());
    }
    let mut frames = tapes.frames(id, 0)?;
    while let Some(records) = frames.next_frame()? {
        if let Some(cast) = records.iter().find_map(Cast::begins) {
            return Ok(cast);
        }
    }
    Ok(Cast::without_terminal())
}

/// How a running tape stands after its first `before` records: its view, and what draws its screen. Reads files.
///
/// # Errors
/// [`TapeError::Damaged`].
pub fn picture(mut frames: Frames, before: u64) -> Result<(Cast, String), TapeError> {
    let (mut screens, mut cast) = (Screens::default(), Cast::without_terminal());
    let mut left = before;
    while left > 0
        && let Some(records) = frames.next_frame()?
    {
        for record in records {
            if left == 0 {
                break;
            }
            left -= 1;
            if cast.channel().is_none()
                && let Some(terminal) = Cast::begins(&record)
            {
                cast = terminal;
            }
            screens.watch(&record);
            drop(cast.event(&record));
        }
    }
    let shown = screens.pictures().into_iter().find(|(channel, ..)| Some(*channel) == cast.channel());
    if let Some((_, What::Screen { cols, rows }, _)) = &shown {
        (cast.cols, cast.rows) = (*cols, *rows);
    }
    Ok((cast, shown.map(|(_, _, dump)| fresh(&dump)).unwrap_or_default()))
}

/// What a reader's terminal shows of a cast, so that it can be drawn again after something else covered it.
pub struct Stage(Option<avt::Terminal>);

impl Stage {
    /// An empty one.
    pub fn new(cast: &Cast) -> Self {
        Self(super::screen::terminal(cast.cols, cast.rows))
    }

    /// Follows what is drawn.
    pub fn show(&mut self, (_, code, text): &CastEvent) {
        let Some(terminal) = &mut self.0 else { return };
        match code {
            'o' => terminal.feed(text.as_str()),
            'r' => {
                let size = text.split_once('x').map(|(cols, rows)| (cols.parse().ok(), rows.parse().ok()));
                if let Some((Some(cols), Some(rows))) = size {
                    let (cols, rows) = super::screen::within(cols, rows);
                    terminal.resize(cols, rows);
                }
            }
            _ => {}
        }
    }

    /// Draws it, on an empty screen.
    pub fn picture(&self) -> String {
        self.0.as_ref().map(|terminal| fresh(&terminal.dump())).unwrap_or_default()
    }

    /// Columns and rows.
    pub fn size(&self) -> (usize, usize) {
        self.0.as_ref().map_or((80, 24), avt::Terminal::size)
    }
}

/// Draws a picture on an empty screen.
fn fresh(dump: &str) -> String {
    Drawing::default().of_text(&format!("\u{1b}c{dump}"))
}
