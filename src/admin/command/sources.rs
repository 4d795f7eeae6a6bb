//! Commands about where connections come from.

use std::net::IpAddr;

use clap::Subcommand;
use serde::{Deserialize, Serialize};

/// `sources …`
#[derive(Debug, Clone, Subcommand, Serialize, Deserialize)]
pub enum Sources {
    /// Which sources are banned, and until when
    List,
    /// Let a banned source in again, and the network around it if that is banned
    Unban {
        /// Its address
        address: IpAddr,
    },
}
