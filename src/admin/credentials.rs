//! What Keyward enters instances with: shown, installed, rotated.

use jiff::Timestamp;
use keystore::{Accepted, CaKind, CaRotation, Credential, Instance, Login, SignsIn};
use serde_json::{Value, json};

use super::render::{plain, short_time, table};
use super::{Caller, Fault, Output, ca};
use crate::audit::Event;
use crate::rotation::{Custody, Errands, RotationFault, span};
use crate::session::House;

/// The way to instances for Keyward's own errands.
pub fn errands(house: &House) -> Errands<'_> {
    let transport = house.config().transport;
    Errands { vault: &house.vault, trail: &house.trail, tapes: &house.tapes, guard: &house.guard, transport }
}

/// The workflows of what Keyward holds.
pub fn custody<'a>(house: &'a House, errands: &'a Errands<'a>) -> Custody<'a> {
    Custody { vault: &house.vault, trail: &house.trail, reach: errands }
}

/// What is known of the credentials of all instances.
pub(super) struct Held {
    credentials: Vec<Credential>,
    accepted: Vec<Accepted>,
    /// The user CA that is announced.
    next_ca: Option<CaRotation>,
    max_age: i64,
}

impl Held {
    pub(super) async fn load(house: &House) -> Result<Self, Fault> {
        Ok(Self {
            credentials: house.vault.list().await?,
            accepted: house.vault.list().await?,
            next_ca: house.vault.get(CaKind::User.as_str()).await?,
            max_age: house.config().credentials.max_age,
        })
    }

    fn of<'a>(&'a self, instance: &'a Instance) -> impl Iterator<Item = &'a Credential> {
        self.credentials.iter().filter(|c| c.instance == instance.name)
    }

    /// Whether the instance was seen to accept the announced user CA; `None` where there is none to accept.
    fn accepts_next(&self, instance: &Instance) -> Option<bool> {
        let next = self.next_ca.as_ref().filter(|_| instance.credential == SignsIn::Certificate)?;
        Some(self.accepted.iter().any(|a| a.instance == instance.name && a.ca == next.to))
    }

    /// The instance as JSON: the record, and what is known of its credentials.
    pub(super) fn shown(&self, instance: &Instance, now: Timestamp) -> Result<Value, Fault> {
        let mut value = serde_json::to_value(instance).map_err(|e| Fault::error(e.to_string()))?;
        if let Some(fields) = value.as_object_mut() {
            let accepted = self.accepted.iter().find(|a| a.instance == instance.name);
            fields.insert("accepted_ca".to_owned(), json!(accepted.map(|a| &a.ca)));
            fields.insert("needs_new_ca_line".to_owned(), json!(self.accepts_next(instance) == Some(false)));
            let keys: Vec<Value> = self.of(instance).map(|c| credential(c, self.max_age, now)).collect();
            fields.insert("credentials".to_owned(), json!(keys));
        }
        Ok(value)
    }

    /// The same in a few words.
    pub(super) fn words(&self, instance: &Instance, now: Timestamp) -> String {
        match (instance.credential, self.accepts_next(instance)) {
            (SignsIn::Certificate, Some(false)) => "certificate; needs the new CA line".to_owned(),
            (SignsIn::Certificate, Some(true)) => "certificate; has the new CA line".to_owned(),
            (SignsIn::Certificate, None) => "certificate".to_owned(),
            (SignsIn::Managed, _) => {
                let states: Vec<String> = self
                    .of(instance)
                    .map(|c| format!("{}: {}", c.login, state(c, self.max_age, now).1))
                    .collect();
                format!("managed key; {}", states.join(", "))
            }
        }
    }

    /// The public keys to install, for a person to read.
    pub(super) fn keys_of(&self, instance: &Instance) -> String {
        let lines = self
            .of(instance)
            .map(|c| format!("\n{}: {} keyward:{}:{}", c.login, c.key.public_key, c.instance, c.login));
        lines.collect()
    }
}

/// Where a credential is in its life: a word for programs, and words for people.
fn state(credential: &Credential, max_age: i64, now: Timestamp) -> (&'static str, String) {
    let age = span(now.as_second().saturating_sub(credential.key.made_at.as_second()));
    match credential {
        Credential { proven_at: None, .. } => ("waiting", "waits to be installed".to_owned()),
        c if c.is_rotating() && c.fault.is_some() => ("stuck", format!("{age} old, its rotation stopped")),
        c if c.is_rotating() => ("rotating", format!("{age} old, being rotated")),
        c if c.due_at(max_age).is_some_and(|due| due <= now) => ("overdue", format!("{age} old, overdue")),
        _ => ("in_use", format!("{age} old")),
    }
}

fn credential(credential: &Credential, max_age: i64, now: Timestamp) -> Value {
    let Credential { instance, login, key, proven_at, next, old, tried_at, fault, .. } = credential;
    json!({
        "instance": instance, "login": login, "status": state(credential, max_age, now).0,
        "public_key": key.public_key, "fingerprint": key.fingerprint, "made_at": key.made_at,
        "age_days": (now.as_second() - key.made_at.as_second()).div_euclid(86_400),
        "proven_at": proven_at, "due_at": credential.due_at(max_age),
        "next": next.as_ref().map(|k| &k.fingerprint), "old": old.as_ref().map(|k| &k.fingerprint),
        "tried_at": tried_at, "fault": fault,
    })
}

/// `instances credentials`: every key that Keyward holds, and what could not be rotated and why.
pub(super) async fn report(house: &House, now: Timestamp, out: &mut Output) -> Result<(), Fault> {
    let held = Held::load(house).await?;
    let values: Vec<Value> = held.credentials.iter().map(|c| credential(c, held.max_age, now)).collect();
    let header = ["INSTANCE", "LOGIN", "KEY", "STATE", "DUE", "TRIED", "WHY NOT ROTATED"];
    let rows = held.credentials.iter().map(|c| {
        let at = |time: Option<Timestamp>| time.map_or_else(|| "-".to_owned(), short_time);
        vec![
            c.instance.to_string(),
            c.login.to_string(),
            c.key.fingerprint.clone(),
            state(c, held.max_age, now).1,
            at(c.due_at(held.max_age)),
            at(c.tried_at),
            plain(c.fault.as_deref().unwrap_or("")).to_string(),
        ]
    });
    out.either(&values, table(&header, rows, out.width())).await
}

/// For `status`: what of the keys that Keyward holds wants an admin.
pub(super) async fn warnings(house: &House, now: Timestamp) -> Result<Vec<String>, Fault> {
    let held = Held::load(house).await?;
    let troubled =
        held.credentials.iter().filter(|c| c.fault.is_some() || state(c, held.max_age, now).0 == "overdue");
    Ok(match troubled.count() {
        0 => Vec::new(),
        n => vec![format!(
            "{n} of Keyward's own keys could not be rotated; see: keyward instances credentials"
        )],
    })
}

/// `instances rotate`: now, and to its end; says for each account how far it came.
pub(super) async fn rotate(
    house: &House,
    caller: &Caller,
    (instance, login): (&Instance, Option<&Login>),
    out: &mut Output,
) -> Result<(), Fault> {
    let name = &instance.name;
    if instance.credential == SignsIn::Certificate {
        return Err(Fault::usage(format!(
            "{name} is entered with certificates of minutes: there is no key there to rotate; the CA: keyward ca rotate user"
        )));
    }
    let logins: Vec<&Login> =
        instance.logins.iter().filter(|l| login.is_none_or(|wanted| *l == wanted)).collect();
    if logins.is_empty() {
        return Err(Fault::not_found(format!(
            "{name} has no such login; see: keyward instances show {name}"
        )));
    }
    let errands = errands(house);
    let custody = custody(house, &errands);
    let (mut values, mut told, mut faults) = (Vec::new(), Vec::new(), Vec::new());
    for login in logins {
        let now = Timestamp::now();
        match custody.rotate((instance, login), &caller.name(), now).await {
            Ok(rotated) => {
                told.push(format!("{login}@{name} is entered with {} from now on.", rotated.key.fingerprint));
                values.push(credential(&rotated, house.config().credentials.max_age, now));
            }
            Err(RotationFault::NotNow(why)) => faults.push(why),
            Err(fault) => return Err(fault.into()),
        }
    }
    if !values.is_empty() {
        out.either(&values, told.join("\n")).await?;
    }
    match faults.as_slice() {
        [] => Ok(()),
        faults => Err(Fault::error(faults.join("\nkeyward: "))),
    }
}

pub(super) fn added(caller: &Caller, credential: &Credential) -> Event {
    Event::CredentialAdded {
        instance: credential.instance.to_string(),
        login: credential.login.to_string(),
        key: credential.key.fingerprint.clone(),
        by: caller.name(),
    }
}

/// What root runs on an instance so that Keyward may enter it.
pub(super) async fn trust_script(house: &House, instance: Option<&Instance>) -> Result<String, Fault> {
    match instance {
        Some(instance) if instance.credential == SignsIn::Managed => {
            let held = Held::load(house).await?;
            Ok(managed_script(&held, instance))
        }
        _ => Ok(ca_script(&ca::lines(house, CaKind::User)?)),
    }
}

fn ca_script(lines: &[String]) -> String {
    let echoes = lines.iter().map(|line| format!("echo '{line} keyward-user-ca'\n")).collect::<String>();
    format!(
        "#!/bin/sh\n# Lets Keyward log in to this instance: run as root. Undo: remove both files, reload sshd.\nset -eu\n\
         {{\n{echoes}}} > /etc/ssh/keyward_user_ca.pub\n\
         chmod 644 /etc/ssh/keyward_user_ca.pub\n\
         echo 'TrustedUserCAKeys /etc/ssh/keyward_user_ca.pub' > /etc/ssh/sshd_config.d/keyward.conf\n\
         sshd -t\nsystemctl reload ssh 2>/dev/null || systemctl reload sshd\n"
    )
}

/// Appends the key of each account to its `authorized_keys`, once; as the account, not as root, so that nothing outside its
/// home can be written by what it made of its home (a symbolic link for `.ssh`, or one that comes in between). Names and
/// keys have no character that needs quoting within single quotes.
fn managed_script(held: &Held, instance: &Instance) -> String {
    let mut script = MANAGED_SCRIPT.to_owned();
    for Credential { instance, login, key, .. } in held.of(instance) {
        script.push_str(&format!("trust '{login}' '{}' 'keyward:{instance}:{login}'\n", key.public_key));
    }
    script
}

const MANAGED_SCRIPT: &str = r#"#!/bin/sh
# Lets Keyward log in to this instance, with keys that it then rotates itself: run as root.
set -eu
add='
set -eu
umask 077
dir=$1/.ssh file=$1/.ssh/authorized_keys
[ -d "$dir" ] || mkdir -m 700 "$dir"
[ ! -h "$file" ] || { echo "$file is a symbolic link: add the key by hand" >&2; exit 1; }
[ -e "$file" ] || : > "$file"
if grep -qF -- "$2" "$file"; then exit 0; fi
[ -z "$(tail -c 1 "$file")" ] || echo >> "$file"
printf "%s %s\n" "$2" "$3" >> "$file"
'
trust() {
  home=$(getent passwd "$1" | cut -d: -f6)
  [ -n "$home" ] || { echo "there is no account $1 here" >&2; exit 1; }
  if [ "$(id -un)" = "$1" ]; then sh -c "$add" sh "$home" "$2" "$3"
  else su -s /bin/sh -c "$add" "$1" sh "$home" "$2" "$3"; fi
}
"#;

#[cfg(test)]
mod tests {
    use std::process::Command;

    use keystore::{Batch, HostTrust};

    use super::*;

    /// Runs the script with a `getent` that knows one home.
    fn run(script: &str, home: &std::path::Path) -> bool {
        let known = format!("getent() {{ echo \"x:x:0:0::{}:/bin/sh\"; }}\n", home.display());
        Command::new("/bin/sh").arg("-c").arg(known + script).status().unwrap().success()
    }

    #[test]
    fn the_script_adds_a_key_once_on_a_line_of_its_own_and_follows_no_link() {
        let login = String::from_utf8(Command::new("id").arg("-un").output().unwrap().stdout).unwrap();
        let login: Login = login.trim().parse().unwrap();
        let instance = Instance {
            name: "db-1".parse().unwrap(),
            aliases: [].into(),
            address: "192.0.2.1:22".parse().unwrap(),
            logins: [login.clone()].into(),
            labels: [].into(),
            host_trust: HostTrust::Pinned(Vec::new()),
            credential: SignsIn::Managed,
            added_at: Timestamp::UNIX_EPOCH,
        };
        let made = Custody::fresh((&instance.name, &login), Batch::default(), Timestamp::UNIX_EPOCH);
        let credential = made.unwrap().0;
        let line = format!("{} keyward:db-1:{login}\n", credential.key.public_key);
        let held = Held { credentials: vec![credential], accepted: Vec::new(), next_ca: None, max_age: 1 };
        let script = managed_script(&held, &instance);
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join(".ssh/authorized_keys");
        for _ in 0..2 {
            assert!(run(&script, home.path()));
            assert_eq!(std::fs::read_to_string(&file).unwrap(), line);
        }
        std::fs::write(&file, "theirs").unwrap();
        assert!(run(&script, home.path()));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), format!("theirs\n{line}"));
        // As another account, which made its .ssh a link to where only root may write.
        let root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
        let (outside, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (linked, runs) in [(true, false), (false, true)].into_iter().filter(|_| root) {
            let nobody = script.replace(&format!("trust '{login}'"), "trust 'nobody'");
            let owned = Command::new("chown").arg("nobody").arg(theirs.path()).status().unwrap();
            assert!(owned.success());
            let ssh = theirs.path().join(".ssh");
            match linked {
                true => std::os::unix::fs::symlink(outside.path(), &ssh).unwrap(),
                false => std::fs::remove_file(&ssh).unwrap(),
            }
            assert_eq!(run(&nobody, theirs.path()), runs);
            assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
            assert_eq!(ssh.join("authorized_keys").exists(), runs);
        }
        let elsewhere = home.path().join("elsewhere");
        std::fs::write(&elsewhere, "not keys\n").unwrap();
        std::fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &file).unwrap();
        assert!(!run(&script, home.path()));
        assert_eq!(std::fs::read_to_string(&elsewhere).unwrap(), "not keys\n");
    }
}
