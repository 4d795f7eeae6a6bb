//! `instances …`.
//!
//! An instance is never added without a way to prove itself; no two instances answer to one name.

use std::collections::BTreeMap;

use jiff::Timestamp;
use keystore::ssh::{HashAlg, PublicKey, looks_private};
use keystore::{
    Accepted, Batch, CaProbe, Credential, HostTrust, Instance, InstanceName, Login, Rule, SignsIn, Target,
};
use serde_json::{Value, json};

use super::credentials::{self, Held};
use super::render::{short_time, table};
use super::{Caller, Fault, InstanceAdd, Instances, Output, trail};
use crate::audit::Event;
use crate::rotation::Custody;
use crate::session::{House, recompile};

pub(super) async fn run(
    house: &House,
    caller: &Caller,
    command: Instances,
    out: &mut Output,
) -> Result<(), Fault> {
    let now = Timestamp::now();
    let header = ["INSTANCE", "ADDRESS", "LOGINS", "LABELS", "TRUST", "ENTERED WITH", "ADDED"];
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
            let held = Held::load(house).await?;
            let values: Vec<_> = all.iter().map(|i| shown(i, &held, now)).collect::<Result<_, _>>()?;
            let rows = all.iter().map(|i| row(i, &held, now));
            out.either(&values, table(&header, rows, out.width())).await
        }
        Instances::Show { name } => {
            let instance = found(house, &name).await?;
            let held = Held::load(house).await?;
            let mut text = table(&header, [row(&instance, &held, now)], out.width());
            let proof = if matches!(instance.host_trust, HostTrust::Ca(_)) { "host CA " } else { "host key" };
            for fingerprint in fingerprints(&instance) {
                text.push_str(&format!("\n{proof}  {fingerprint}"));
            }
            text.push_str(&held.keys_of(&instance));
            out.either(&shown(&instance, &held, now)?, text).await
        }
        Instances::Credentials => credentials::report(house, now, out).await,
        Instances::Rotate { name, login } => {
            let instance = found(house, &name).await?;
            credentials::rotate(house, caller, (&instance, login.as_ref()), out).await
        }
        Instances::Remove { name, yes } => {
            // What was typed may be an alias: what goes is the instance, under its name.
            let name = found(house, &name).await?.name;
            if !yes {
                return Err(Fault::usage(format!(
                    "nothing was changed; to remove {name} and end its sessions, add --yes"
                )));
            }
            let rules = remove(house, caller, &name, now).await?;
            let named: Vec<&str> = rules.iter().map(|rule| rule.id.as_str()).collect();
            let says = match named.as_slice() {
                [] => format!("Removed {name}."),
                named => format!("Removed {name}, and the rules that name it: {}.", named.join(", ")),
            };
            out.done(&json!({ "instance": name, "removed": true, "rules": named }), says).await
        }
        Instances::TrustScript { name } => {
            let instance = match &name {
                Some(name) => Some(found(house, name).await?),
                None => None,
            };
            out.line(credentials::trust_script(house, instance.as_ref()).await?).await
        }
    }
}

/// Removes it, with the rules that name it, since another instance of this name would inherit them, and the keys that
/// Keyward holds for it: all or none.
async fn remove(
    house: &House,
    caller: &Caller,
    name: &InstanceName,
    now: Timestamp,
) -> Result<Vec<Rule>, Fault> {
    let mut rules: Vec<Rule> = house.vault.list().await?;
    rules.retain(|rule| rule.target == Target::Instance(name.clone()));
    let batch = Batch::default()
        .remove::<Instance>(name.as_str())
        .remove::<Accepted>(name.as_str())
        .remove::<CaProbe>(name.as_str());
    let batch = rules.iter().fold(batch, |batch, rule| batch.remove::<Rule>(&rule.id));
    let mut held: Vec<Credential> = house.vault.list().await?;
    held.retain(|credential| credential.instance == *name);
    let batch = held.iter().fold(batch, |batch, credential| Custody::forgotten(credential, batch));
    let removed = Event::InstanceRemoved { instance: name.to_string(), by: caller.name() };
    let rule_removed = |rule: &Rule| Event::AccessRuleRemoved { rule: rule.id.clone(), by: caller.name() };
    let events = [removed].into_iter().chain(rules.iter().map(rule_removed)).collect();
    let change = async { Ok(house.vault.commit(batch).await?) };
    let done = trail::takes_all(house, events, now, change).await;
    recompile(house).await;
    done.map(|()| rules)
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
        credential: wanted.credential.into(),
        added_at: Timestamp::now(),
    };
    not_the_bastion(house, &instance)?;
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
    let mut batch = Batch::default().insert(&instance)?;
    let mut events = vec![trail::instance_added(caller, &instance)];
    if instance.credential == SignsIn::Managed {
        for login in &instance.logins {
            let (credential, more) = Custody::fresh((&instance.name, login), batch, instance.added_at)?;
            batch = more;
            events.push(credentials::added(caller, &credential));
        }
    }
    let insert = async { Ok(house.vault.commit(batch).await?) };
    trail::gives(house, events, instance.added_at, insert).await?;
    Ok(instance)
}

/// Whoever typed one of its names would not know which of the two answers.
fn not_the_bastion(house: &House, instance: &Instance) -> Result<(), Fault> {
    let config = house.config();
    let own = |name: &InstanceName| config.names.iter().any(|own| own.eq_ignore_ascii_case(name.as_str()));
    match instance.aliases.iter().chain([&instance.name]).find(|name| own(name)) {
        None => Ok(()),
        Some(name) => Err(Fault::conflict(format!(
            "{name} is what the bastion itself is called (names in its configuration); nothing was changed. Choose another name"
        ))),
    }
}

fn shown(instance: &Instance, held: &Held, now: Timestamp) -> Result<Value, Fault> {
    let mut value = held.shown(instance, now)?;
    if let Some(fields) = value.as_object_mut() {
        fields.insert("host_key_fingerprints".to_owned(), json!(fingerprints(instance)));
    }
    Ok(value)
}

/// `SHA256:… (ssh-ed25519)` of each key by which the instance, or its authority, proves itself.
fn fingerprints(instance: &Instance) -> Vec<String> {
    let lines = match &instance.host_trust {
        HostTrust::Pinned(lines) => lines.as_slice(),
        HostTrust::Ca(line) => std::slice::from_ref(line),
    };
    let keys = lines.iter().filter_map(|line| PublicKey::from_openssh(line).ok());
    keys.map(|key| format!("{} ({})", key.fingerprint(HashAlg::Sha256), key.algorithm())).collect()
}

/// The keys in a `.pub` file or in `known_hosts` lines, each as one OpenSSH line.
fn host_keys(text: &str) -> Result<Vec<String>, Fault> {
    // Nothing of the file is shown: it may be the private key.
    let wrong =
        |what: String| Fault::error(format!("{what}; use /etc/ssh/ssh_host_ed25519_key.pub of the instance"));
    if looks_private(text) {
        return Err(wrong("this is a private key, which stays where it is".to_owned()));
    }
    let mut keys = Vec::new();
    for (number, line) in (1..).zip(text.lines().map(str::trim)) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = || wrong(format!("line {number} is no public host key"));
        let words: Vec<&str> = line.split_whitespace().collect();
        let pair = words.windows(2).find_map(|pair| match pair {
            [algorithm, blob] if blob.starts_with("AAAA") => Some(format!("{algorithm} {blob}")),
            _ => None,
        });
        let key = PublicKey::from_openssh(&pair.ok_or_else(wrong)?).map_err(|_| wrong())?;
        keys.push(self::line(&key)?);
    }
    if keys.is_empty() { Err(wrong("there is no public host key in it".to_owned())) } else { Ok(keys) }
}

/// The instance of this name or alias. An address is neither: several may lie behind one.
pub(super) async fn found(house: &House, name: &InstanceName) -> Result<Instance, Fault> {
    let instance = answering(house, name.as_str()).await?;
    if instance.is_named(name.as_str()) {
        return Ok(instance);
    }
    Err(Fault::not_found(format!("{name} is the address of {}; name the instance", instance.name)))
}

/// The instance that `host` means.
pub(super) async fn answering(house: &House, host: &str) -> Result<Instance, Fault> {
    let all: Vec<Instance> = house.vault.list().await?;
    let near = all.iter().map(|i| i.name.to_string()).find(|n| strsim::jaro_winkler(n, host) > 0.85);
    Instance::meant(&all, host, None).cloned().ok_or_else(|| {
        Fault::not_found(match near {
            Some(near) => format!("no instance {host}; did you mean {near}?"),
            None => format!("no instance {host}; see: keyward instances list"),
        })
    })
}

fn row(instance: &Instance, held: &Held, now: Timestamp) -> Vec<String> {
    let logins = instance.logins.iter().map(Login::as_str).collect::<Vec<_>>().join(",");
    let labels = instance.labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",");
    let trust = match &instance.host_trust {
        HostTrust::Pinned(keys) => format!("{} pinned", keys.len()),
        HostTrust::Ca(_) => "host CA".to_owned(),
    };
    let added = short_time(instance.added_at);
    let entered = held.words(instance, now);
    vec![instance.name.to_string(), instance.address.to_string(), logins, labels, trust, entered, added]
}

/// A public key as one line, without its comment.
pub(super) fn line(key: &PublicKey) -> Result<String, Fault> {
    let text = key.to_openssh().map_err(|e| Fault::error(e.to_string()))?;
    Ok(text.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
}
