//! `instances …`, `ca …` and `ssh-config`.
//!
//! An instance is never added without a way to prove itself; no two instances answer to one name.

use std::collections::BTreeMap;

use jiff::Timestamp;
use keystore::ssh::PublicKey;
use keystore::{HostTrust, Instance, InstanceName, Login, Rule, Target};

use super::render::{short_time, table};
use super::{Caller, Fault, InstanceAdd, Instances, Output, Which, access, trail, users};
use crate::audit::Event;
use crate::policy::Facts;
use crate::session::House;

pub(super) async fn run(
    house: &House,
    caller: &Caller,
    command: Instances,
    out: &mut Output,
) -> Result<(), Fault> {
    let now = Timestamp::now();
    let header = ["INSTANCE", "ADDRESS", "LOGINS", "LABELS", "TRUST", "ADDED"];
    match command {
        Instances::Add(wanted) => {
            let instance = add(house, caller, *wanted).await?;
            let name = &instance.name;
            let next =
                format!("Added {name}. Next, on {name} as root: keyward instances trust-script {name}");
            out.either(&instance, next).await
        }
        Instances::List => {
            let all: Vec<Instance> = house.vault.list().await?;
            out.either(&all, table(&header, all.iter().map(row), out.width())).await
        }
        Instances::Show { name } => {
            let instance = found(house, &name).await?;
            out.either(&instance, table(&header, [row(&instance)], out.width())).await
        }
        Instances::Remove { name, yes } => {
            found(house, &name).await?;
            if !yes {
                return Err(Fault::usage(format!(
                    "nothing was changed; to remove {name} and end its sessions, add --yes"
                )));
            }
            let event = Event::InstanceRemoved { instance: name.to_string(), by: caller.name() };
            let removed = async { Ok(house.vault.remove::<Instance>(name.as_str()).await?) };
            let removed = trail::takes(house, event, now, removed).await;
            // Another instance of this name would inherit them.
            let mut rules: Vec<Rule> = house.vault.list().await?;
            rules.retain(|rule| rule.target == Target::Instance(name.clone()));
            for rule in &rules {
                access::remove(house, caller, &rule.id, now).await?;
            }
            removed?;
            let named: Vec<&str> = rules.iter().map(|rule| rule.id.as_str()).collect();
            out.note(match named.as_slice() {
                [] => format!("Removed {name}."),
                named => format!("Removed {name}, and the rules that name it: {}.", named.join(", ")),
            })
            .await
        }
        Instances::TrustScript { name } => {
            if let Some(name) = &name {
                found(house, name).await?;
            }
            out.line(trust_script(&line(house.signers.user_ca.public_key())?)).await
        }
    }
}

async fn add(house: &House, caller: &Caller, wanted: InstanceAdd) -> Result<Instance, Fault> {
    let host_trust = match (&wanted.host_key_text, &wanted.host_ca_text) {
        (Some(text), _) => HostTrust::Pinned(host_keys(text)?),
        (None, Some(text)) => match host_keys(text)?.as_slice() {
            [ca] => HostTrust::Ca(ca.clone()),
            _ => return Err(Fault::error("the host CA file must hold exactly one public key")),
        },
        (None, None) => {
            return Err(Fault::usage("say how it proves itself: --host-key FILE or --host-ca FILE"));
        }
    };
    let instance = Instance {
        name: wanted.name,
        aliases: wanted.aliases.into_iter().collect(),
        address: wanted.address,
        logins: wanted.logins.into_iter().collect(),
        labels: wanted.labels.into_iter().map(|l| (l.key, l.value)).collect::<BTreeMap<_, _>>(),
        host_trust,
        added_at: Timestamp::now(),
    };
    for other in house.vault.list::<Instance>().await? {
        let mut names = instance.aliases.iter().chain([&instance.name]);
        if let Some(name) = names.find(|n| other.name == **n || other.aliases.contains(*n)) {
            return Err(Fault::conflict(if *name == other.name {
                format!("there is an instance {name} already; nothing was changed")
            } else {
                format!("{name} means {} already; nothing was changed", other.name)
            }));
        }
    }
    let insert = async { Ok(house.vault.insert(&instance).await?) };
    trail::gives(house, vec![trail::instance_added(caller, &instance)], instance.added_at, insert).await?;
    Ok(instance)
}

/// The keys in a `.pub` file or in `known_hosts` lines, each as one OpenSSH line.
fn host_keys(text: &str) -> Result<Vec<String>, Fault> {
    let wrong = |line: &str| {
        let start: String = line.chars().take(40).collect();
        Fault::error(format!(
            "{start:?} is no public host key; use /etc/ssh/ssh_host_ed25519_key.pub of the instance"
        ))
    };
    let mut keys = Vec::new();
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let pair = words.windows(2).find_map(|pair| match pair {
            [algorithm, blob] if blob.starts_with("AAAA") => Some(format!("{algorithm} {blob}")),
            _ => None,
        });
        let key = PublicKey::from_openssh(&pair.ok_or_else(|| wrong(line))?).map_err(|_| wrong(line))?;
        keys.push(self::line(&key)?);
    }
    if keys.is_empty() { Err(wrong("(empty file)")) } else { Ok(keys) }
}

pub(super) async fn found(house: &House, name: &InstanceName) -> Result<Instance, Fault> {
    answering(house, name.as_str()).await
}

/// The instance that `host` means.
pub(super) async fn answering(house: &House, host: &str) -> Result<Instance, Fault> {
    let all: Vec<Instance> = house.vault.list().await?;
    let near = all.iter().map(|i| i.name.to_string()).find(|n| strsim::jaro_winkler(n, host) > 0.85);
    all.into_iter().find(|i| i.answers_to(host)).ok_or_else(|| {
        Fault::not_found(match near {
            Some(near) => format!("no instance {host}; did you mean {near}?"),
            None => format!("no instance {host}; see: keyward instances list"),
        })
    })
}

fn row(instance: &Instance) -> Vec<String> {
    let logins = instance.logins.iter().map(Login::as_str).collect::<Vec<_>>().join(",");
    let labels = instance.labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",");
    let trust = match &instance.host_trust {
        HostTrust::Pinned(keys) => format!("{} pinned", keys.len()),
        HostTrust::Ca(_) => "host CA".to_owned(),
    };
    let added = short_time(instance.added_at);
    vec![instance.name.to_string(), instance.address.to_string(), logins, labels, trust, added]
}

fn line(key: &PublicKey) -> Result<String, Fault> {
    let text = key.to_openssh().map_err(|e| Fault::error(e.to_string()))?;
    Ok(text.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
}

fn trust_script(ca: &str) -> String {
    format!(
        "#!/bin/sh\n# Lets Keyward log in to this instance: run as root. Undo: remove both files, reload sshd.\nset -eu\n\
         echo '{ca} keyward-user-ca' > /etc/ssh/keyward_user_ca.pub\n\
         chmod 644 /etc/ssh/keyward_user_ca.pub\n\
         echo 'TrustedUserCAKeys /etc/ssh/keyward_user_ca.pub' > /etc/ssh/sshd_config.d/keyward.conf\n\
         sshd -t\nsystemctl reload ssh 2>/dev/null || systemctl reload sshd\n"
    )
}

pub(super) async fn ca(house: &House, which: Which, out: &mut Output) -> Result<(), Fault> {
    match which {
        Which::User => out.line(line(house.signers.user_ca.public_key())?).await,
        Which::Host => out.line(authority(house)?).await,
    }
}

fn authority(house: &House) -> Result<String, Fault> {
    Ok(format!("@cert-authority * {}", line(house.signers.host_ca.public_key())?))
}

/// The client configuration. `KnownHostsCommand` (OpenSSH 8.5) carries the trust, so that appending the output to
/// `~/.ssh/config` is all a client needs; older ones take the commented line into `known_hosts`.
pub(super) async fn ssh_config(house: &House, facts: &Facts<'_>, out: &mut Output) -> Result<(), Fault> {
    let authority = authority(house)?;
    let bastion = house.bastion();
    let listen = house.config().listen;
    let user = facts.user;
    let host =
        if listen.ip().is_unspecified() { String::new() } else { format!("    HostName {}\n", listen.ip()) };
    let trust = format!("    KnownHostsCommand /bin/echo {authority}\n");
    let mut text = format!(
        "# Keyward, for {user}. For clients before OpenSSH 8.5, put this into ~/.ssh/known_hosts:\n# {authority}\n\
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
    out.line(text).await
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
