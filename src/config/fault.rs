//! What is wrong with the file: which line, which key, and what would be right.

use std::ops::Range;
use std::path::{Path, PathBuf};

/// What is wrong with the configuration file.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("{file}: cannot be read: {why}. Name the file with --config or $KEYWARD_CONFIG, or make one: keyward init --dir DIR", file = file.display())]
    Unreadable {
        /// Which file.
        file: PathBuf,
        /// What the system said.
        why: String,
    },
    /// A line says what it must not.
    #[error("{file}:{line}: {key}: {what}", file = file.display())]
    Fault {
        /// Which file.
        file: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// Which key, with its table: `login.key_secs`.
        key: String,
        /// What is wrong and what would be right.
        what: String,
    },
}

/// The file, for naming what is wrong with it.
pub(super) struct Source<'a> {
    pub(super) path: &'a Path,
    pub(super) text: &'a str,
}

impl Source<'_> {
    pub(super) fn fault(&self, key: &str, what: String) -> ConfigError {
        let line = line_of_key(self.text, key).unwrap_or(1);
        ConfigError::Fault { file: self.path.to_owned(), line, key: key.to_owned(), what }
    }
}

/// What the parser said, as a fault with line and key.
pub(super) fn malformed(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let span = error.span().unwrap_or(0..0);
    let (line, mut key) = position(text, &span);
    let mut what = error.message().lines().next().unwrap_or("not valid TOML").to_owned();
    if let Some((wrong, known)) = unknown_field(&what) {
        let nearest = known
            .iter()
            .copied()
            .max_by(|a, b| strsim::jaro_winkler(wrong, a).total_cmp(&strsim::jaro_winkler(wrong, b)));
        key = wrong.to_owned();
        what = match nearest.filter(|n| strsim::jaro_winkler(wrong, n) > 0.7) {
            Some(nearest) => format!("unknown key; did you mean {nearest}?"),
            None => format!("unknown key; known here: {}", known.join(", ")),
        };
    } else if let Some(missing) = what.strip_prefix("missing field ") {
        key = missing.trim_matches('`').to_owned();
        what = "is missing".to_owned();
    }
    ConfigError::Fault { file: path.to_owned(), line, key, what }
}

fn unknown_field(message: &str) -> Option<(&str, Vec<&str>)> {
    message.strip_prefix("unknown field `")?;
    let mut names = message.split('`').skip(1).step_by(2);
    let wrong = names.next()?;
    Some((wrong, names.collect()))
}

/// The line (from 1) and the key that stands on it, with its table.
fn position(text: &str, span: &Range<usize>) -> (usize, String) {
    let line = text.get(..span.start).map_or(1, |before| before.matches('\n').count() + 1);
    let mut table = String::new();
    let mut key = String::new();
    for content in text.lines().take(line) {
        let content = content.trim();
        if let Some(name) = content.strip_prefix('[').and_then(|c| c.strip_suffix(']')) {
            table = format!("{}.", name.trim());
            key = name.trim().to_owned();
        } else if let Some((name, _)) = content.split_once('=') {
            key = format!("{table}{}", name.trim());
        }
    }
    (line, if key.is_empty() { "(file)".to_owned() } else { key })
}

fn line_of_key(text: &str, key: &str) -> Option<usize> {
    let mut table = String::new();
    for (index, content) in text.lines().enumerate() {
        let content = content.trim();
        if let Some(name) = content.strip_prefix('[').and_then(|c| c.strip_suffix(']')) {
            table = format!("{}.", name.trim());
        } else if let Some((name, _)) = content.split_once('=')
            && format!("{table}{}", name.trim()) == key
        {
            return Some(index + 1);
        }
    }
    None
}
