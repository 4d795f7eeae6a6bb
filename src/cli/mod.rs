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
use serde_json::json;

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
    /// Do it without asking
    #[arg(long, global = true)]
    yes: bool,
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
        Top::Init { dir, listen } => init(&dir, listen, cli.json),
        Top::Serve => serve(checked(&cli.config)?),
        Top::Config(ConfigCommand::Check) => {
            let config = checked(&cli.config)?;
            answer(cli.json, &json!({ "file": config.path, "valid": true }), || {
                format!("{}: valid\n", config.path.display())
            })
        }
        Top::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "keyward", &mut script);
            say(&String::from_utf8_lossy(&script))
        }
        Top::Man { dir: Some(dir) } => {
            clap_mangen::generate_to(Cli::command(), &dir).map_err(|e| {
                Fault::error(format!("{}: {e}; --dir names a folder that is there", dir.display()))
            })?;
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
                client::ask(&socket, *command, client::Wanted { json: cli.json, yes: cli.yes })
            }
        },
    }
}

fn init(dir: &Path, listen: SocketAddr, json: bool) -> Result<u8, Fault> {
    let at_fault = |e: std::io::Error| Fault::error(format!("{}: {e}", dir.display()));
    // What is printed is used from other folders too.
    let dir = std::path::absolute(dir).map_err(at_fault)?;
    if dir.exists() && !dir.is_dir() {
        return Err(Fault::error(format!(
            "{} is no folder; --dir names one, which is made if there is none",
            dir.display()
        )));
    }
    let made = runtime()?.block_on(server::init(&dir, listen)).map_err(|e| match e {
        server::InitError::Initialised(_) => Fault::conflict(e.to_string()),
        server::InitError::Failed(_) => Fault::error(e.to_string()),
    })?;
    let file = made.display();
    answer(json, &json!({ "config": made, "dir": dir, "listen": listen }), || {
        format!(
            "Made {file}. Next:\n  1. export KEYWARD_CONFIG={file}; keyward serve\n  \
         2. keyward users add alice; keyward ssh-keys add --user alice --file id_ed25519.pub; keyward mfa enroll alice\n  \
         3. keyward instances add db-1 --address HOST:22 --login ubuntu --host-key FILE; \
         keyward access allow --user alice --instance db-1 --login ubuntu\n"
        )
    })
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

/// The configuration, if the daemon can start with it.
fn checked(path: &Path) -> Result<Config, Fault> {
    let config = Config::load(path).map_err(error)?;
    server::check(&config).map_err(error)?;
    Ok(config)
}

fn error(error: impl std::fmt::Display) -> Fault {
    Fault::error(error.to_string())
}

/// Answers with `value` if JSON was asked for, or else in words.
fn answer(json: bool, value: &serde_json::Value, words: impl FnOnce() -> String) -> Result<u8, Fault> {
    if json { say(&format!("{value:#}\n")) } else { say(&words()) }
}

fn say(text: &str) -> Result<u8, Fault> {
    match std::io::stdout().write_all(text.as_bytes()) {
        // `… | head` has seen enough.
        Err(gone) if gone.kind() == std::io::ErrorKind::BrokenPipe => Ok(0),
        written => written.map(|()| 0).map_err(error),
    }
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
    fn every_command_takes_yes_and_those_that_ask_hear_it() {
        use crate::admin::Users;
        let parse = |line: &str| Cli::try_parse_from(line.split(' ')).unwrap();
        for line in [
            "keyward --yes access deny-all --reason breach",
            "keyward access deny-all --reason breach --yes",
            "keyward mfa reset alice --yes",
            "keyward mfa recovery-codes alice --yes",
            "keyward ssh-keys revoke K1 --reason lost --yes",
            "keyward access remove R1 --yes",
            "keyward sessions kill 019a208b --yes",
            "keyward users suspend alice --yes",
            "keyward users remove alice --yes",
            "keyward --yes users remove alice",
        ] {
            let cli = parse(line);
            let told = match &cli.command {
                Top::Admin(Command::Users(Users::Remove { yes, .. })) => *yes || cli.yes,
                _ => cli.yes,
            };
            assert!(told, "{line}");
        }
        let Top::Admin(Command::Users(Users::Remove { yes, .. })) =
            parse("keyward users remove alice").command
        else {
            panic!()
        };
        assert!(!yes);
    }

    #[test]
    fn a_reason_and_a_speed_that_say_nothing_are_refused_where_they_are_typed() {
        for line in [
            "keyward ssh-keys revoke K1 --reason=",
            "keyward users suspend alice --reason=",
            "keyward sessions kill x --reason=",
            "keyward access deny-all --reason=",
            "keyward sessions play x --speed 1e-300",
            "keyward sessions play x --speed -1",
            "keyward sessions play x --state s --identity i --speed nan",
        ] {
            let refused = Cli::try_parse_from(line.split(' ')).err().map(|e| e.exit_code());
            assert_eq!(refused, Some(2), "{line}");
        }
    }

    #[test]
    fn an_instance_needs_a_way_to_prove_itself() {
        let words = "keyward instances add db-1 --address h:22 --login u".split(' ');
        assert!(Cli::try_parse_from(words.clone()).is_err());
        assert!(Cli::try_parse_from(words.chain(["--host-key", "f"])).is_ok());
    }
}
