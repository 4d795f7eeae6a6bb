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

use crate::admin::{self, Command, Fault, Logs, Recording, Sessions, StateVerified};
use crate::audit;
use crate::config::Config;
use crate::recording::{TapeKeys, Tapes};
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
        Top::Admin(Command::Recording(Recording::Rewrap { state: Some(state), identity, recipients })) => {
            let identity = identity
                .ok_or_else(|| Fault::usage("name the identity that opens them now: --identity FILE"))?;
            let to = TapeKeys::recipients_only(&recipients).map_err(|e| Fault::usage(e.to_string()))?;
            let tapes = Tapes::inspect(&state.join("tapes"), TapeKeys::load(&identity).map_err(error)?);
            let done = tapes.rewrap(&to).map_err(error)?;
            say(&format!("{done} recordings can now be read by {}\n", to.recipients().join(", ")))
        }
        Top::Admin(Command::Sessions(command)) if offline::copy_of(&command).is_some() => {
            let copy = offline::copy_of(&command).cloned().unwrap_or_default();
            offline::read(&copy.state.clone().unwrap_or_default(), &copy, command, cli.json)
        }
        Top::Admin(Command::Sessions(Sessions::Verify { bundle: Some(file), trust: Some(key), .. })) => {
            let key = audit::read_key(&key).map_err(error)?;
            let archive =
                std::fs::File::open(&file).map_err(|e| Fault::error(format!("{}: {e}", file.display())))?;
            let verified = admin::verify_bundle(std::io::BufReader::new(archive), &key)
                .map_err(|fault| Fault { says: format!("{}: {}", file.display(), fault.says), ..fault })?;
            let shown = if cli.json { verified.as_json().to_string() } else { verified.to_string() };
            say(&format!("{}\n", shown))
        }
        Top::Admin(Command::Logs(Logs::Verify { state: Some(state), trust, heads })) => {
            let verified = verify_offline(&state, &cli.config, Trust { key: trust, heads })?;
            let shown = if cli.json { verified.as_json().to_string() } else { verified.to_string() };
            say(&format!("{shown}\n"))
        }
        Top::Admin(command) => {
            let socket = Config::socket_of(&cli.config).map_err(error)?;
            client::ask(&socket, command, cli.json)
        }
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

/// Checks a state directory, or a copy of one. The frames of tapes are opened too if the configuration is readable
/// and names the auditors' identity; otherwise their digests are compared with the chain.
///
/// The audit key is the one that is named, or the one that `init` wrote beside the state directory, or, on a bare copy, the
/// one inside it: then only who has the bastion's own key could have rewritten everything.
fn verify_offline(state: &Path, config: &Path, trust: Trust) -> Result<StateVerified, Fault> {
    let beside = state.parent().map(|dir| dir.join("audit_key.pub")).filter(|file| file.exists());
    let key = trust.key.or(beside).unwrap_or_else(|| state.join("audit/signer.pub"));
    let key = audit::read_key(&key).map_err(|fault| Fault::tampering(fault.to_string()))?;
    let against = audit::Against { key, heads: trust.heads };
    let identity = Config::load(config).ok().and_then(|c| c.recording.identity).filter(|file| file.exists());
    let keys = match identity {
        Some(file) => TapeKeys::load(&file).map_err(error)?,
        None => TapeKeys::none(),
    };
    admin::verify(&state.join("audit"), &Tapes::inspect(&state.join("tapes"), keys), &against)
}

/// What was kept elsewhere to hold a copy against.
struct Trust {
    key: Option<PathBuf>,
    heads: Option<PathBuf>,
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
