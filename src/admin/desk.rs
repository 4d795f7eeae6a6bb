//! The command language over SSH: `ssh alice@bastion …`, and the page a bare shell shows.

use std::collections::BTreeSet;
use std::sync::Arc;

use clap::Parser;
use futures_util::future::{BoxFuture, FutureExt};
use jiff::Timestamp;
use keystore::{KeyStatus, Role, SecondFactor, UserKey};
use tokio::sync::mpsc;

use super::command::FromAfar;
use super::render::plain;
use super::{
    Ca, Caller, Chunk, Command, Fault, Instances, Keyboard, Output, Sessions, SshKeys, Users, Visitor,
};
use super::{access, execute, keys};
use crate::auth::{Authenticated, mfa};
use crate::policy::Facts;
use crate::rotation::notice;
use crate::session::{Ask, Desk, House, still_in};

/// Answers logged-in users.
pub struct FrontDesk {
    house: Arc<House>,
}

impl FrontDesk {
    /// A desk in `house`.
    pub fn new(house: Arc<House>) -> Self {
        Self { house }
    }

    async fn answer(&self, mut visitor: Visitor, mut ask: Ask, to: mpsc::Sender<Chunk>) -> u8 {
        let by = visitor.logged_in();
        // The roles of now; whether the login counts still is asked by what is asked for.
        if let Ok(user) = still_in(&self.house, by, Timestamp::now()).await {
            visitor.roles = user.roles;
        }
        let keyboard = ask.keys.take().map(|keys| Keyboard { keys, rows: ask.rows.unwrap_or(24) });
        let mut out = Output::new(to, false, ask.columns).with_keyboard(keyboard);
        match parse(&visitor, &ask) {
            Ok(Asked::Page) if visitor.service => {
                let says =
                    format!("{NO_SHELL} ssh -J {}@{} LOGIN@INSTANCE", visitor.user, self.house.bastion());
                if out.note(says).await.is_ok() { 4 } else { 1 }
            }
            Ok(Asked::Page) => match page(&self.house, &visitor, &mut out).await {
                Ok(()) => 0,
                Err(fault) => fault.code,
            },
            Ok(Asked::Command { command, json }) => {
                let mut out = out.with_json(json);
                execute(&self.house, &Caller::User(visitor), *command, &mut out).await
            }
            Err(fault) => {
                let told =
                    if fault.code == 0 { out.line(fault.says).await } else { out.note(fault.says).await };
                if told.is_ok() { fault.code } else { 1 }
            }
        }
    }
}

impl Desk for FrontDesk {
    fn run(&self, caller: Arc<Authenticated>, ask: Ask, to: mpsc::Sender<Chunk>) -> BoxFuture<'_, u8> {
        self.answer(Visitor::of(&caller), ask, to).boxed()
    }

    fn reads_stdin(&self, command: &str) -> bool {
        let typed = shlex::split(command).unwrap_or_default();
        let mut words = typed.iter().map(String::as_str).filter(|word| !word.starts_with('-'));
        let mut next = || words.find(|word| *word != "keyward");
        match (next(), next()) {
            (Some("ssh-keys"), Some("add" | "rotate")) => true,
            (Some("instances"), Some("add")) => {
                typed.iter().any(|word| word == "-" || word == "--host-key=-")
            }
            _ => false,
        }
    }
}

/// Keyward, over SSH
#[derive(Parser)]
#[command(name = "keyward", no_binary_name = true, disable_version_flag = true)]
struct Line {
    /// Answer in JSON
    #[arg(long, global = true)]
    json: bool,
    /// Do it without asking
    #[arg(long, global = true)]
    yes: bool,
    #[command(subcommand)]
    command: Command,
}

/// The command that `words` say, as over SSH.
///
/// # Errors
/// Exit code 2 and what would be right.
pub fn said(words: &[String]) -> Result<Command, Fault> {
    Line::try_parse_from(words).map(|line| line.command).map_err(misspoken)
}

fn misspoken(error: clap::Error) -> Fault {
    Fault {
        code: u8::try_from(error.exit_code()).unwrap_or(2),
        says: error.render().to_string().trim_end().to_owned(),
    }
}

enum Asked {
    Page,
    Command { command: Box<Command>, json: bool },
}

fn parse(visitor: &Visitor, ask: &Ask) -> Result<Asked, Fault> {
    let typed = ask.command.as_deref().unwrap_or("").trim();
    if typed.is_empty() || typed == "whoami" {
        return Ok(Asked::Page);
    }
    let words = shlex::split(typed).ok_or_else(|| Fault::usage("keyward: a quote is not closed"))?;
    // As it is typed on the bastion itself.
    let words = words.strip_prefix(&["keyward".to_owned()]).unwrap_or(&words);
    if words.is_empty() {
        return Ok(Asked::Page);
    }
    let line = Line::try_parse_from(words).map_err(misspoken)?;
    let mut command = line.command;
    if let Command::Users(Users::Remove { yes, .. })
    | Command::Instances(Instances::Remove { yes, .. })
    | Command::Ca(Ca::Retire { yes, .. }) = &mut command
    {
        *yes |= line.yes;
    }
    match command.over_ssh() {
        FromAfar::Whole => {}
        FromAfar::Key => with_key(&mut command, ask)?,
        FromAfar::HostKey => with_host_key(&mut command, ask)?,
        FromAfar::Whose => with_owner(&mut command, visitor),
        FromAfar::Refused(says) => return Err(Fault::usage(says)),
    }
    Ok(Asked::Command { command: Box::new(command), json: line.json })
}

/// The new key, from standard input.
fn with_key(command: &mut Command, ask: &Ask) -> Result<(), Fault> {
    if let Command::SshKeys(SshKeys::Add { file, file_text, .. } | SshKeys::Rotate { file, file_text, .. }) =
        command
    {
        if ask.stdin.is_empty() || file.as_ref().is_some_and(|f| f.as_os_str() != "-") {
            return Err(Fault::usage(
                "keyward: over SSH the new key comes by standard input: ssh-keys rotate < ~/.ssh/id_new.pub",
            ));
        }
        *file_text = Some(String::from_utf8_lossy(&ask.stdin).into_owned());
    }
    Ok(())
}

fn with_host_key(command: &mut Command, ask: &Ask) -> Result<(), Fault> {
    let Command::Instances(Instances::Add(wanted)) = command else { return Ok(()) };
    let piped = wanted.host_key.as_ref().is_some_and(|file| file.as_os_str() == "-");
    if !piped || ask.stdin.is_empty() {
        return Err(Fault::usage(
            "keyward: over SSH the host key comes by standard input: instances add … --host-key - < host_key.pub. Files \
             and --scan are for the bastion itself",
        ));
    }
    wanted.host_key_text = Some(String::from_utf8_lossy(&ask.stdin).into_owned());
    Ok(())
}

/// Who may not see everybody's list is shown their own.
fn with_owner(command: &mut Command, visitor: &Visitor) {
    let all = visitor.roles.iter().any(|r| matches!(r.as_str(), "admin" | "auditor"));
    if let Command::SshKeys(SshKeys::List { user, .. }) | Command::Sessions(Sessions::List { user, .. }) =
        command
        && user.is_none()
        && !all
    {
        *user = Some(visitor.user.clone());
    }
}

async fn page(house: &House, visitor: &Visitor, out: &mut Output) -> Result<(), Fault> {
    let now = Timestamp::now();
    let by = visitor.logged_in();
    let user = match still_in(house, by, now).await {
        Ok(user) => user,
        Err(sentence) => {
            out.note(format!("keyward: {sentence}")).await?;
            return Err(Fault::denied(sentence));
        }
    };
    let roles = visitor.roles.iter().map(Role::as_str).collect::<Vec<_>>().join(", ");
    let mut owned: Vec<UserKey> = house.vault.list().await?;
    owned.retain(|k| k.user == visitor.user);
    owned.sort_by_key(|key| key.added_at);
    let config = house.config();
    let (bastion, terms) = (config.bastion(), config.keys.of(&user));
    let mut told: Vec<String> = owned
        .iter()
        .filter_map(|key| notice(key, &terms, now, bastion))
        .chain(owned.iter().filter(|k| k.status_at(now) == KeyStatus::Pending).map(|k| waits(k, bastion)))
        .collect();
    let factor = house.vault.get::<SecondFactor>(visitor.user.as_str()).await?;
    told.extend(factor.as_ref().and_then(mfa::clock_notice));
    told.extend(super::ca::notice(house, &format!("{}@{bastion}", visitor.user)).await?);
    let came_with = house.certificates.standing(&visitor.user, visitor.certificate, now);
    told.extend(came_with.map(|(named, _)| format!("You came with the certificate {}.", plain(&named))));
    told.push(String::new());
    if visitor.only_exchanges {
        told.push(keys::listed(&owned, &BTreeSet::new(), now, out.width()));
        return out.line(told.join("\n")).await;
    }
    let facts = Facts { user: &visitor.user, roles: &visitor.roles, source: visitor.source };
    let rows = access::reachable(house, &facts).await?.into_iter().map(|(instance, login, can)| {
        let can =
            can.as_array().into_iter().flatten().filter_map(|c| c.as_str()).collect::<Vec<_>>().join(",");
        vec![format!("ssh -J {}@{} {login}@{}", visitor.user, bastion, instance.name), can]
    });
    let mut places = super::render::table(&["YOU MAY GO TO", "AND DO"], rows, out.width());
    if places == "(none)" {
        places = "You may go nowhere yet: no access rule is about you. Ask an administrator.".to_owned();
    }
    let keys = match owned.as_slice() {
        [] => String::new(),
        owned => format!("{}\n\n", keys::listed(owned, &BTreeSet::new(), now, out.width())),
    };
    let text = format!(
        "You are {} ({roles}), from {}.\n{}\n{keys}{places}\n\nClient configuration: ssh {}@{} setup >> ~/.ssh/config\n",
        visitor.user,
        visitor.source,
        told.join("\n"),
        visitor.user,
        bastion,
    );
    out.line(text).await
}

fn waits(key: &UserKey, bastion: &str) -> String {
    let (id, user) = (&key.id, &key.user);
    format!("{id} waits for its first login: ssh -i ~/.ssh/id_new -o IdentitiesOnly=yes {user}@{bastion}")
}

const NO_SHELL: &str = "keyward: services have no shell here. They go through:";
