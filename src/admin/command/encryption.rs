//! Commands about the master key.

use std::path::PathBuf;

use clap::Subcommand;
use serde::{Deserialize, Serialize};

/// `encryption …`
#[derive(Debug, Clone, Subcommand, Serialize, Deserialize)]
pub enum Encryption {
    /// Seal the store under another master key, while it serves
    Rotate {
        /// File with the master key of now
        #[arg(long)]
        old_key: PathBuf,
        /// File with the new one; made if there is none
        #[arg(long)]
        new_key: PathBuf,
    },
    /// Which master key the store is sealed under, by its id
    Status,
}
