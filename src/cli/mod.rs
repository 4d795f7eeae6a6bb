//! The `keyward` command: grammar, files on the client's side, exit codes.
//!
//! It never opens the store: everything but `init`, `serve` and what needs no daemon goes over the socket.

mod client;
mod keyboard;
mod log;
mod offline;

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::admin::{Command, Fault};
use crate::config::Config;
use crate::server;

/// An SSH bastion: plain `ssh -J`, recorded in full
#[derive(Parser)]
#[command(name = "keyward", version)]
struct Cli {
    /// The configuration file
    #[arg(long, global = true, env = "KEYWARD_CONFIG", default_value = "/etc/keyward/keyward.toml")]
    config: PathBuf,
    /// Answer in JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Top,
}

#[derive(Subcommand)]
enum Top {
    /// Make a new bastion: configuration, keys, store
    Init {
        /// Where
        #[arg(long)]
        dir: PathBuf,
        /// The address to serve SSH on
        #[arg(long, default_value = "0.0.0.0:2222")]
        listen: SocketAddr,
    },
    /// Run the daemon in the foreground
    Serve,
    /// The configuration file
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print a completion script
    Completions {
        /// For this shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write all of them into DIR
    Man {
        /// Where
        #[arg(long)]
        dir: Option<PathBuf>,
    },
    #[command(flatten)]
    Admin(Command),
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Validate; names file, line and key of the first fault
    Check,
}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => ExitCode::from(code),
        Err(fault) => {
            // Standard error is the last resort: if it is closed, the exit code still tells.
            drop(writeln!(std::io::stderr(), "keyward: {fault}"));
            ExitCode::from(fault.code)
        }
    }
}

fn run(cli: Cli) -> Result<u8, Fault> {
    match cli.command {
        Top::Init { dir, listen } => init(&dir, listen),
        Top::Serve => serve(load(&cli.config)?),
        Top::Config(ConfigCommand::Check) => {
            let config = load(&cli.config)?;
            say(&format!("{}: valid\n", config.path.display()))
        }
        Top::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "keyward", &mut script);
            say(&String::from_utf8_lossy(&script))
        }
        Top::Man { dir: Some(dir) } => {
            clap_mangen::generate_to(Cli::command(), &dir).map_err(error)?;
            Ok(0)
        }
        Top::Man { dir: None } => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut page).map_err(error)?;
            say(&String::from_utf8_lossy(&page))
        }
        Top::Admin(command) => match offline::run(command, &cli.config, cli.json) {
            Ok(done) => done,
            Err(command) => {
                let socket = Config::socket_of(&cli.config).map_err(error)?;
                client::ask(&socket, *command, cli.json)
            }
        },
    }
}

fn init(dir: &Path, listen: SocketAddr) -> Result<u8, Fault> {
    let made = runtime()?.block_on(server::init(dir, listen)).map_err(|e| match e {
        server::InitError::Initialised(_) => Fault::conflict(e.to_string()),
        server::InitError::Failed(_) => Fault::error(e.to_string()),
    })?;
    let file = made.display();
    say(&format!(
        "Made {file}. Next:\n  1. export KEYWARD_CONFIG={file}; keyward serve\n  \
         2. keyward users add alice; keyward ssh-keys add --user alice --file id_ed25519.pub; keyward mfa enroll alice\n  \
         3. keyward instances add db-1 --address HOST:22 --login ubuntu --host-key FILE; \
         keyward access allow --user alice --instance db-1 --login ubuntu\n"
    ))
}

fn serve(config: Config) -> Result<u8, Fault> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| LOGGED.into());
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(log::stderr).init();
    runtime()?.block_on(server::run(config)).map_err(error)?;
    Ok(0)
}

fn runtime() -> Result<tokio::runtime::Runtime, Fault> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(error)
}

fn load(path: &Path) -> Result<Config, Fault> {
    Config::load(path).map_err(error)
}

fn error(error: impl std::fmt::Display) -> Fault {
    Fault::error(error.to_string())
}

fn say(text: &str) -> Result<u8, Fault> {
    std::io::stdout().write_all(text.as_bytes()).map_err(error)?;
    Ok(0)
}

/// What is logged if `RUST_LOG` does not say. The SSH library's own words help who looks for a fault: `RUST_LOG=info,russh=debug`.
const LOGGED: &str = "info,russh=off";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_instance_needs_a_way_to_prove_itself() {
        let words = "keyward instances add db-1 --address h:22 --login u".split(' ');
        assert!(Cli::try_parse_from(words.clone()).is_err());
        assert!(Cli::try_parse_from(words.chain(["--host-key", "f"])).is_ok());
    }
}
