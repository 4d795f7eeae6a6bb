//! `ca …` and `ssh-config`: what others need to trust Keyward, and the way of a CA to its successor.

use std::collections::BTreeMap;

use jiff::Timestamp;
use keystore::{CaKind, CaProbe, CaRotation, InstanceName, Login};
use serde::Serialize;
use serde_json::{Value, json};

use super::instances::line;
use super::render::{plain, short_time, table};
use super::{Ca, Caller, Fault, Output, access, credentials, users};
use crate::policy::Facts;
use crate::rotation::{Asked, ca_notice, lagging};
use crate::session::House;

pub(super) async fn run(house: &House, caller: &Caller, command: Ca, out: &mut Output) -> Result<(), Fault> {
    match command {
        Ca::Show { which } => {
            let which = which.into();
            let lines = lines(house, which)?;
            out.either(&json!({ "ca": which, "lines": lines }), lines.join("\n")).await
        }
        Ca::Rotate { which, overlap } => rotate(house, caller, (which.into(), overlap.0), out).await,
        Ca::Check => check(house, out).await,
        Ca::Retire { which, yes } => retire(house, caller, (which.into(), yes), out).await,
    }
}

/// The lines to trust, as sshd's `TrustedUserCAKeys` or as `known_hosts` want them: of the CA, and of its successor.
pub(super) fn lines(house: &House, which: CaKind) -> Result<Vec<String>, Fault> {
    let authorities = house.signers.authorities();
    let lines = authorities.trusted(which).into_iter().map(|key| match which {
        CaKind::User => line(key),
        CaKind::Host => Ok(format!("@cert-authority * {}", line(key)?)),
    });
    lines.collect()
}

async fn rotate(
    house: &House,
    caller: &Caller,
    (which, overlap): (CaKind, i64),
    out: &mut Output,
) -> Result<(), Fault> {
    if !(1..=LONGEST_OVERLAP).contains(&overlap) {
        return Err(Fault::usage(
            "--overlap is out of range; use 1s to 365d (a CA that is stolen: 1s, and see what refuses)",
        ));
    }
    let now = Timestamp::now();
    let ends_at =
        Timestamp::from_second(now.as_second() + overlap).map_err(|e| Fault::usage(e.to_string()))?;
    let by = caller.name();
    let errands = credentials::errands(house);
    let custody = credentials::custody(house, &errands);
    let announced = custody.announce(&house.signers, (which, &by), ends_at, now).await?;
    let until = short_time(ends_at);
    let next = match which {
        CaKind::User => format!(
            "1. Until {until}, run on every instance, as root: keyward instances trust-script (it trusts both CAs).\n\
             2. keyward ca check asks those that were not yet seen to accept the new one, as Keyward does by itself every hour;\n   \
             keyward status names them.\n\
             3. Then the CA before retires by itself; at once: keyward ca retire user"
        ),
        CaKind::Host => format!(
            "1. Until {until}, everybody replaces Keyward's block in ~/.ssh/config by what setup prints; they are told when \
             they log in.\n   It trusts both CAs. Until then the one before answers, since older clients know no other.\n\
             2. Then the new one answers; at once: keyward ca retire host. A client without its line refuses from then on."
        ),
    };
    let text = format!("The {which} CA has a successor, {}.\n\n{next}", announced.to);
    out.either(&announced, text).await
}

/// Asks now, and says what each answered that does not accept the new one.
async fn check(house: &House, out: &mut Output) -> Result<(), Fault> {
    if house.vault.get::<CaRotation>(CaKind::User.as_str()).await?.is_none() {
        return Err(Fault::conflict("the user CA has no successor; announce one: keyward ca rotate user"));
    }
    let errands = credentials::errands(house);
    let custody = credentials::custody(house, &errands);
    let count = custody.probe(&house.signers, Asked::All, Timestamp::now()).await?;
    let left = unready(house).await?;
    let value = json!({ "asked": count, "not_seen_on": left });
    let text = match left.as_slice() {
        [] => "Every instance was seen to accept the new user CA.".to_owned(),
        left => {
            let rows = left.iter().map(|u| vec![u.instance.to_string(), plain(&u.words()).to_string()]);
            let table = table(&["INSTANCE", "ANSWER"], rows, out.width());
            format!("{table}\nThere, as root: keyward instances trust-script; then again: keyward ca check")
        }
    };
    out.either(&value, text).await
}

/// An instance that was not seen to accept the announced user CA.
#[derive(Serialize)]
struct Unready {
    instance: InstanceName,
    asked_at: Option<Timestamp>,
    reason: Option<String>,
}

impl Unready {
    fn words(&self) -> String {
        match (&self.reason, self.asked_at) {
            (Some(reason), Some(at)) => format!("{reason}, asked {}", short_time(at)),
            _ => "not asked yet".to_owned(),
        }
    }
}

async fn unready(house: &House) -> Result<Vec<Unready>, Fault> {
    let left = lagging(&house.vault, CaKind::User).await?;
    let Some(rotation) = house.vault.get::<CaRotation>(CaKind::User.as_str()).await? else {
        return Ok(Vec::new());
    };
    let asked: Vec<CaProbe> = house.vault.list().await?;
    let of = |instance: InstanceName| {
        let probe = asked.iter().find(|p| p.instance == instance && p.ca == rotation.to);
        let (asked_at, reason) = (probe.map(|p| p.asked_at), probe.and_then(|p| p.fault.clone()));
        Unready { instance, asked_at, reason }
    };
    Ok(left.into_iter().map(of).collect())
}

async fn retire(
    house: &House,
    caller: &Caller,
    (which, yes): (CaKind, bool),
    out: &mut Output,
) -> Result<(), Fault> {
    let left = lagging(&house.vault, which).await?;
    if !yes {
        let left = match left.as_slice() {
            [] => String::new(),
            left => format!(" Not yet seen to accept the new one: {}.", names(left)),
        };
        return Err(Fault::usage(format!(
            "nothing was changed; what trusts the {which} CA of before alone refuses Keyward from then on.{left} To go on, \
             add --yes"
        )));
    }
    let by = caller.name();
    let errands = credentials::errands(house);
    let custody = credentials::custody(house, &errands);
    let left = custody.retire(&house.signers, (which, &by), Timestamp::now()).await?;
    let value = json!({ "ca": which, "lines": lines(house, which)?, "not_seen_on": left });
    let text = match left.as_slice() {
        [] => format!("The {which} CA of before is forgotten; its successor is in its place."),
        left => format!(
            "The {which} CA of before is forgotten. These were not seen to accept its successor and need it now: {}. There, \
             as root: keyward instances trust-script",
            names(left)
        ),
    };
    out.either(&value, text).await
}

fn names<T: ToString>(names: &[T]) -> String {
    names.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

/// For `status`: both CAs, and what is to be done about them.
pub(super) async fn state(house: &House) -> Result<(Value, Vec<String>), Fault> {
    let mut value = serde_json::Map::new();
    let mut warnings = Vec::new();
    for which in CaKind::ALL {
        let rotation = house.vault.get::<CaRotation>(which.as_str()).await?;
        let left = if which == CaKind::User { unready(house).await? } else { Vec::new() };
        if let Some(rotation) = &rotation {
            let ends = short_time(rotation.ends_at);
            warnings.push(match (which, left.as_slice()) {
                (CaKind::Host, _) => format!("the host CA changes {ends}: clients need the new line by then (setup)"),
                (CaKind::User, []) => format!("the user CA changes {ends}; every instance was seen to accept the new one"),
                (CaKind::User, left) => format!(
                    "the user CA changes {ends}; not yet seen to accept the new one: {}. There: keyward instances trust-script",
                    told(left)
                ),
            });
        }
        let lines = lines(house, which)?;
        let state = json!({
            "lines": lines, "rotation": rotation,
            "not_seen_on": left.iter().map(|u| &u.instance).collect::<Vec<_>>(), "asked": left,
        });
        value.insert(which.to_string(), state);
    }
    Ok((Value::Object(value), warnings))
}

/// The first of them with what they answered, and how many more there are.
fn told(left: &[Unready]) -> String {
    let mut told: Vec<String> =
        left.iter().take(MOST_TOLD).map(|u| format!("{} ({})", u.instance, plain(&u.words()))).collect();
    if left.len() > MOST_TOLD {
        told.push(format!("and {} more (keyward ca check)", left.len() - MOST_TOLD));
    }
    told.join(", ")
}

/// What an engineer is told while the host CA changes.
pub(super) async fn notice(house: &House, to: &str) -> Result<Option<String>, Fault> {
    let rotation = house.vault.get::<CaRotation>(CaKind::Host.as_str()).await?;
    Ok(rotation.map(|rotation| ca_notice(&rotation, Timestamp::now(), to)))
}

/// Instances that `status` names.
const MOST_TOLD: usize = 10;
/// The longest that two CAs are trusted, in seconds.
const LONGEST_OVERLAP: i64 = 365 * 86_400;

/// The client configuration. `KnownHostsCommand` (OpenSSH 8.5) carries the trust, so that appending the output to
/// `~/.ssh/config` is all a client needs; older ones take the commented line into `known_hosts`.
pub(super) async fn ssh_config(house: &House, facts: &Facts<'_>, out: &mut Output) -> Result<(), Fault> {
    let authorities = lines(house, CaKind::Host)?;
    let commented = authorities.iter().map(|line| format!("# {line}\n")).collect::<String>();
    let bastion = house.bastion();
    let listen = house.config().listen;
    let user = facts.user;
    let host =
        if listen.ip().is_unspecified() { String::new() } else { format!("    HostName {}\n", listen.ip()) };
    let trust = format!("    KnownHostsCommand {}\n", known_hosts_command(&authorities));
    let mut text = format!(
        "# Keyward, for {user}. For clients before OpenSSH 8.5, put this into ~/.ssh/known_hosts:\n{commented}\
         Host {bastion}\n{host}    Port {port}\n    User {user}\n    HostKeyAlias {bastion}\n\
         \x20   ControlMaster auto\n    ControlPath ~/.ssh/keyward-%C\n    ControlPersist 10m\n{trust}",
        port = listen.port()
    );
    let mut places: BTreeMap<String, Vec<Login>> = BTreeMap::new();
    for (instance, login, _) in access::reachable(house, facts).await? {
        let names: Vec<_> =
            [&instance.name].into_iter().chain(&instance.aliases).map(|n| n.as_str()).collect();
        places.entry(names.join(" ")).or_default().push(login);
    }
    for (name, logins) in places {
        text.push_str(&format!("Host {name}\n    ProxyJump {bastion}\n"));
        if let [only] = logins.as_slice() {
            text.push_str(&format!("    User {only}\n"));
        }
        text.push_str(&trust);
    }
    let value = json!({
        "user": user, "bastion": bastion, "port": listen.port(), "known_hosts": authorities, "config": text,
    });
    out.either(&value, text.as_str()).await
}

/// Prints the lines. ssh splits the command's words as a shell does, but expands nothing but `%`.
fn known_hosts_command(lines: &[String]) -> String {
    match lines {
        [line] => format!("/bin/echo {line}"),
        // printf takes its format again for every four words.
        lines => format!("/usr/bin/printf \"%%s %%s %%s %%s\\n\" {}", lines.join(" ")),
    }
}

pub(super) async fn ssh_config_for(
    house: &House,
    caller: &Caller,
    user: Option<keystore::UserName>,
    out: &mut Output,
) -> Result<(), Fault> {
    let name =
        user.or_else(|| caller.user().cloned()).ok_or_else(|| Fault::usage("say for whom: --user NAME"))?;
    if !caller.has_role("admin") && caller.user() != Some(&name) {
        return Err(Fault::denied("you may ask for your own configuration only"));
    }
    let user = users::found(house, &name).await?;
    let source = match caller {
        Caller::User(visitor) => visitor.source,
        Caller::Operator { .. } => std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
    };
    ssh_config(house, &Facts { user: &user.name, roles: &user.roles, source }, out).await
}
