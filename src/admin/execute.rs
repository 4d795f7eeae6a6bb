//! From a command to its answer: who may say it, then who carries it out.

use std::time::Duration;

use jiff::Timestamp;
use keystore::{Record, User};

use super::{Access, Ca, Caller, Command, Fault, Instances, Mfa, Output, Sessions, SshKeys, Users, Visitor};
use super::{access, factors, instances, keys, logs, sessions, users};
use crate::session::{House, still_in};

/// Carries out `command` and returns its exit code. What failed is written to `out`'s standard error.
/// Not cancel-safe: run it to its end, or a change may be made without its audit event.
pub async fn execute(house: &House, caller: &Caller, command: Command, out: &mut Output) -> u8 {
    let done = match permitted(caller, &command, Viewers::of(house)) {
        Ok(()) => dispatch(house, caller, command, out).await,
        Err(fault) => Err(fault),
    };
    out.release();
    let Err(fault) = done else {
        if out.progressed().await.is_err() {
            tracing::debug!("admin.client_gone");
        }
        return 0;
    };
    if out.note(format!("keyward: {fault}")).await.is_err() {
        tracing::debug!("admin.client_gone");
    }
    fault.code
}

/// What is open to a login whose key has expired.
fn exchanges(caller: &Caller, command: &Command) -> bool {
    match command {
        Command::SshKeys(SshKeys::Rotate { user, .. }) => user.is_none() || user.as_ref() == caller.user(),
        Command::SshConfig { .. } => true,
        _ => false,
    }
}

/// Who may see recordings besides auditors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Viewers {
    /// A user those of her own sessions.
    pub owner: bool,
    /// Admins.
    pub admin: bool,
}

impl Viewers {
    /// As configured.
    pub fn of(house: &House) -> Self {
        let terms = &house.config().recording;
        Self { owner: terms.owner_may_view, admin: terms.admin_may_view }
    }
}

/// Whether `caller` may say `command` at all; some commands look closer at what it names.
///
/// # Errors
/// [`Fault`] with exit code 4.
pub fn permitted(caller: &Caller, command: &Command, viewers: Viewers) -> Result<(), Fault> {
    if let Caller::User(visitor) = caller
        && visitor.only_exchanges
        && !exchanges(caller, command)
    {
        return Err(Fault::denied(
            "your key has expired: until you have exchanged it, only this is open to you: ssh-keys rotate < new.pub",
        ));
    }
    if let Caller::User(visitor) = caller
        && visitor.service
        && !exchanges(caller, command)
    {
        return Err(Fault::denied("a service may rotate its own key here, and nothing else"));
    }
    let anyone = match command {
        Command::SshConfig { .. } | Command::Ca(Ca::Show { .. }) => true,
        Command::SshKeys(SshKeys::Show { .. } | SshKeys::Revoke { .. }) => true,
        Command::SshKeys(SshKeys::Rotate { user, .. }) => user.is_none() || user.as_ref() == caller.user(),
        Command::SshKeys(SshKeys::List { user, .. }) => user.is_some() && user.as_ref() == caller.user(),
        Command::Sessions(Sessions::List { user, .. }) => user.is_some() && user.as_ref() == caller.user(),
        Command::Access(Access::Explain { .. }) => true,
        // Whose session it is is looked at where it is known.
        Command::Sessions(
            Sessions::Play { .. }
            | Sessions::Transcript { .. }
            | Sessions::Export { .. }
            | Sessions::Show { .. },
        ) => viewers.owner && !caller.has_role("admin"),
        _ => false,
    };
    let auditor = match command {
        Command::Status | Command::Logs(_) | Command::Console { .. } => true,
        Command::Sources(super::Sources::List) => true,
        Command::Sessions(Sessions::Kill { .. }) => false,
        Command::Sessions(_) => true,
        Command::Users(Users::List | Users::Show { .. })
        | Command::Mfa(Mfa::List)
        | Command::SshKeys(SshKeys::List { .. } | SshKeys::Report { .. })
        | Command::Instances(Instances::List | Instances::Show { .. } | Instances::Credentials)
        | Command::Access(Access::List | Access::Review | Access::Audit | Access::Export { .. }) => true,
        _ => false,
    };
    let tape = command.shows_recordings();
    if anyone || caller.has_role("auditor") && auditor || caller.has_role("admin") && (viewers.admin || !tape)
    {
        return Ok(());
    }
    let whose = match (auditor, tape && !viewers.admin) {
        (true, true) => "auditors",
        (true, false) => "auditors and admins",
        (false, _) => "admins",
    };
    Err(Fault::denied(format!("this is for {whose}; ask one of them")))
}

async fn dispatch(house: &House, caller: &Caller, command: Command, out: &mut Output) -> Result<(), Fault> {
    // One change at a time: checks such as "no other instance has this name" hold until the write.
    // The turn ends with the first word of the answer: the next change waits for no reader.
    let mut begun = None;
    if command.changes() {
        out.hold(CHANGES.lock().await);
        // The daemon does not end in the middle of it, whichever door it came through.
        begun = house.registry.begin_change();
        if begun.is_none() {
            return Err(Fault { code: 6, says: "the daemon is ending, so nothing was changed".to_owned() });
        }
    }
    if begun.is_some() {
        keystore::failpoint::wait("change.begun").await;
    }
    let _until_done = begun;
    // Only now: a right that was lost while the command was typed, or waited for its turn, counts no more.
    let caller = &of_now(house, caller, &command).await?;
    if !command.lasts() {
        return carry_out(house, caller, command, out).await;
    }
    let said = command.clone();
    tokio::select! {
        biased;
        fault = lost(house, caller, &said) => Err(fault),
        done = carry_out(house, caller, command, out) => done,
    }
}

/// Resolves once `caller` may not say `command` any more.
async fn lost(house: &House, caller: &Caller, command: &Command) -> Fault {
    let Caller::User(visitor) = caller else { return std::future::pending().await };
    let mut changes = house.vault.changes();
    loop {
        if let Err(fault) = of_now(house, caller, command).await {
            return fault;
        }
        // A login that ends otherwise is cut with its connection.
        let mine = async {
            while let Ok(change) = changes.recv().await {
                if change.kind == User::KIND && change.id == visitor.user.as_str() {
                    return;
                }
            }
        };
        if tokio::time::timeout(LATEST, mine).await.is_err() {
            tracing::trace!("desk.asked_again");
        }
    }
}

async fn carry_out(house: &House, caller: &Caller, command: Command, out: &mut Output) -> Result<(), Fault> {
    match command {
        Command::Status => super::status::status(house, out).await,
        Command::Clock { is_right } => super::clock::run(house, caller, is_right, out).await,
        Command::Recording(command) => super::status::recording(house, caller, command, out).await,
        Command::Users(command) => users::users(house, caller, command, out).await,
        Command::SshKeys(command) => keys::run(house, caller, command, out).await,
        Command::Mfa(command) => factors::run(house, caller, command, out).await,
        Command::Instances(command) => instances::run(house, caller, command, out).await,
        Command::Access(command) => access::run(house, caller, command, out).await,
        Command::Sessions(command) => sessions::run(house, caller, command, out).await,
        Command::Sources(command) => super::sources::run(house, caller, command, out).await,
        Command::Logs(command) => logs::run(house, caller, command, out).await,
        Command::Encryption(command) => super::encryption::run(house, caller, command, out).await,
        Command::Console { stay } => super::console::link(house, caller, stay, out).await,
        Command::Ca(command) => super::ca::run(house, caller, command, out).await,
        Command::SshConfig { user } => super::ca::ssh_config_for(house, caller, user, out).await,
    }
}

/// The caller with the roles of now, if the login still counts and `command` may be said.
///
/// # Errors
/// [`Fault`] with exit code 4.
pub async fn entitled(house: &House, caller: &Caller, command: &Command) -> Result<Caller, Fault> {
    permitted(caller, command, Viewers::of(house))?;
    of_now(house, caller, command).await
}

/// The caller with the roles of now, if the login still counts.
async fn of_now(house: &House, caller: &Caller, command: &Command) -> Result<Caller, Fault> {
    let Caller::User(visitor) = caller else { return Ok(caller.clone()) };
    let by = visitor.logged_in();
    let user = still_in(house, by, Timestamp::now()).await.map_err(Fault::denied)?;
    let caller = Caller::User(Visitor { roles: user.roles, ..visitor.clone() });
    permitted(&caller, command, Viewers::of(house))?;
    Ok(caller)
}

/// How late it may be noticed that a right was lost, where its change was missed.
const LATEST: Duration = Duration::from_secs(1);

static CHANGES: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::Logs;

    fn permitted(caller: &Caller, command: &Command) -> Result<(), Fault> {
        super::permitted(caller, command, Viewers::default())
    }

    fn user(role: &str) -> Caller {
        Caller::User(Visitor {
            user: "alice".parse().unwrap(),
            roles: [role.parse().unwrap()].into(),
            key: String::new(),
            certificate: None,
            source: "192.0.2.1".parse().unwrap(),
            service: false,
            only_exchanges: false,
        })
    }
    fn keys_of(name: &str) -> Command {
        Command::SshKeys(SshKeys::List { user: Some(name.parse().unwrap()), expiring: None })
    }

    #[test]
    fn an_engineer_lists_her_own_keys_and_not_her_neighbours() {
        assert!(permitted(&user("engineer"), &keys_of("alice")).is_ok());
        assert_eq!(permitted(&user("engineer"), &keys_of("bob")).unwrap_err().code, 4);
    }

    #[test]
    fn an_expired_key_rotates_itself_and_does_nothing_else() {
        let Caller::User(mut visitor) = user("admin") else { panic!() };
        visitor.only_exchanges = true;
        let late = Caller::User(visitor);
        let rotate = |user: Option<&str>| {
            let user = user.map(|name| name.parse().unwrap());
            Command::SshKeys(SshKeys::Rotate { user, old: None, file: None, file_text: None, name: None })
        };
        assert!(permitted(&late, &rotate(None)).is_ok());
        assert!(permitted(&late, &keys_of("alice")).is_err() && permitted(&late, &Command::Status).is_err());
        assert!(permitted(&late, &rotate(Some("bob"))).is_err(), "not even an admin, for another");
        assert!(permitted(&user("admin"), &rotate(Some("bob"))).is_ok());
        assert!(permitted(&user("engineer"), &rotate(Some("bob"))).is_err());
    }

    #[test]
    fn an_auditor_plays_tapes_and_kills_no_session() {
        let play = Command::Sessions(Sessions::Play {
            id: "s".into(),
            speed: crate::admin::Speed::default(),
            from: crate::admin::Offset(0),
            copy: crate::admin::FromCopy::default(),
        });
        let kill = Command::Sessions(Sessions::Kill { id: "s".into(), reason: "r".into() });
        assert!(permitted(&user("auditor"), &play).is_ok() && permitted(&user("auditor"), &kill).is_err());
        assert!(permitted(&user("admin"), &kill).is_ok() && permitted(&user("admin"), &play).is_err());
    }

    #[test]
    fn an_owner_and_an_admin_see_recordings_only_where_that_is_configured() {
        let command = |command| Command::Sessions(command);
        let transcript = command(Sessions::Transcript {
            id: "s".into(),
            commands: false,
            copy: crate::admin::FromCopy::default(),
        });
        let watch = command(Sessions::Watch { id: "s".into() });
        let bundle = command(Sessions::Bundle { ids: vec!["s".into()], output: None });
        let may = |role, command: &Command, owner, admin| {
            super::permitted(&user(role), command, Viewers { owner, admin }).is_ok()
        };
        assert!(may("engineer", &transcript, true, false) && !may("engineer", &transcript, false, true));
        assert!(!may("engineer", &watch, true, true) && !may("engineer", &bundle, true, true));
        for told in [&transcript, &watch, &bundle] {
            assert!(may("admin", told, false, true) && !may("admin", told, true, false), "{told:?}");
            assert!(may("auditor", told, false, false));
        }
    }

    #[test]
    fn the_console_is_the_auditors() {
        let console = Command::Console { stay: false };
        assert!(permitted(&user("auditor"), &console).is_ok());
        for other in ["engineer", "admin"] {
            assert_eq!(permitted(&user(other), &console).unwrap_err().code, 4, "{other}");
        }
    }

    #[test]
    fn a_lockdown_waits_for_no_other_change() {
        let lockdown = Access::DenyAll { reason: Some("breach".into()), end: false };
        assert!(!Command::Access(lockdown).changes());
        assert!(Command::SshKeys(SshKeys::Revoke { key: "K1".into(), reason: "lost".into() }).changes());
    }

    #[test]
    fn an_auditor_exports_logs_and_an_engineer_does_not() {
        let verify = Command::Logs(Logs::Verify { state: None, identity: None, trust: None, heads: None });
        assert!(
            permitted(&user("auditor"), &verify).is_ok() && permitted(&user("engineer"), &verify).is_err()
        );
    }
}
