//! A one-time code, and nothing but the stock client: key and authenticator.

use std::fs;
use std::process::Output;

use crate::rig::{Rig, text};

/// A person at the terminal: answers each prompt with what stands for it in files named after the user.
fn person(rig: &Rig, user: &str, code: &str) {
    rig.script(
        &format!("code_{user}"),
        &format!(
            "printf '%s\\n' \"$1\" >> {log}\ncase \"$1\" in\n\
             *'Enrolment code: ') echo {code} ;;\n\
             *'press Enter: ') echo ;;\n\
             *'secret: '*) printf '%s\\n' \"$1\" | sed -n 's/^secret: //p' > {secret}; oathtool --totp --base32 \"$(cat {secret})\" ;;\n\
             *'Verification code: ') oathtool --totp --base32 \"$(cat {secret})\" ;;\nesac",
            log = rig.path(&format!("prompts_{user}")).display(),
            secret = rig.path(&format!("secret_{user}")).display(),
        ),
    );
}

fn prompts(rig: &Rig, user: &str) -> String {
    fs::read_to_string(rig.path(&format!("prompts_{user}"))).unwrap_or_default()
}

fn desk(rig: &Rig, user: &str) -> Output {
    rig.client("ssh", user).args(["-o", "NumberOfPasswordPrompts=1", "bastion"]).output().unwrap()
}

fn invite(rig: &Rig, user: &str) -> String {
    rig.json(&["users", "invite", user])["code"].as_str().unwrap().to_owned()
}

#[test]
fn an_invited_person_enrols_key_and_authenticator_in_one_login() {
    let mut rig = Rig::bastion();
    rig.ok(&["users", "add", "carol"]);
    rig.keygen("id_carol");
    person(&rig, "carol", &invite(&rig, "carol"));
    let output = desk(&rig, "carol");
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert!(output.status.success(), "{err}\n{}", prompts(&rig, "carol"));
    assert!(out.contains("You are carol"), "{out}");
    let asked = prompts(&rig, "carol");
    assert!(asked.contains("This key will be added:  SHA256:"), "{asked}");
    assert!(asked.contains("Recovery codes, each good once"), "{asked}");
    assert!(asked.contains('█') || asked.contains("\\342"), "a QR code: {asked}");
    let keys = rig.json(&["ssh-keys", "list", "--user", "carol"]);
    assert_eq!((&keys[0]["status"], &keys[1]), (&"active".into(), &serde_json::Value::Null));
    let trail = rig.ok(&["logs", "tail", "-n", "100"]);
    for event in ["user_invited", "ssh_key_added", "mfa_enrolled", "ssh_login_succeeded"] {
        assert_eq!(trail.matches(&format!("\"{event}\"")).count(), 1, "{event}: {trail}");
    }

    assert_eq!(rig.events("mfa_enrolled")[0]["by"], "carol (invited)");
    rig.kill_9();
    rig.serve();
    let recovery =
        asked.lines().skip_while(|l| !l.contains("Recovery codes")).find(|l| l.starts_with("  ")).unwrap();
    rig.script("code_carol", &format!("echo {}", recovery.trim()));
    assert!(desk(&rig, "carol").status.success(), "key and recovery code are hers now");

    rig.keygen("id_mallory");
    fs::rename(rig.path("id_mallory"), rig.path("id_carol")).unwrap();
    fs::rename(rig.path("id_mallory.pub"), rig.path("id_carol.pub")).unwrap();
    let again = desk(&rig, "carol");
    assert_eq!(again.status.code(), Some(255), "the code is spent, also for whoever found it");
}

#[test]
fn strangers_are_asked_the_same_whether_the_user_exists_or_not() {
    let rig = Rig::bastion();
    for user in ["carol", "dave"] {
        rig.ok(&["users", "add", user]);
    }
    rig.keygen("id_stranger");
    let said = |user: &str| {
        rig.keygen(&format!("id_{user}"));
        rig.script(
            &format!("code_{user}"),
            &format!(
                "printf '%s\\n' \"$1\" >> {}; echo aaaa-bbbb-cccc-dddd",
                rig.path(&format!("prompts_{user}")).display()
            ),
        );
        let began = std::time::Instant::now();
        let output = desk(&rig, user);
        assert_eq!(output.status.code(), Some(255));
        let words = format!("{}{}", prompts(&rig, user), text(output.stderr)).replace(user, "NAME");
        (words, began.elapsed().as_millis())
    };
    let (quiet, _) = said("eve");
    assert!(!quiet.contains("Enrolment"), "nobody is invited, so nobody is asked: {quiet}");
    fs::remove_file(rig.path("id_eve")).unwrap();
    invite(&rig, "carol");
    let (invited, took) = said("carol");
    assert!(invited.contains("Enrolment code: "), "{invited}");
    for user in ["dave", "eve"] {
        let (words, time) = said(user);
        assert_eq!(words, invited, "{user}");
        // Coarse, for a busy machine: login.rs compares the times by their minima.
        assert!(time.abs_diff(took) < 1500, "{user}: {time} ms, {took} ms");
    }
    assert_eq!(rig.json(&["ssh-keys", "list"]).as_array().unwrap().len(), 0);
}

#[test]
fn a_code_given_before_the_key_enrols_too() {
    let rig = Rig::bastion();
    rig.ok(&["users", "add", "carol"]);
    rig.keygen("id_carol");
    person(&rig, "carol", &invite(&rig, "carol"));
    let order = "PreferredAuthentications=keyboard-interactive,publickey";
    let output = rig.client("ssh", "carol").args(["-o", order, "bastion"]).output().unwrap();
    assert!(output.status.success(), "{}\n{}", text(output.stderr), prompts(&rig, "carol"));
    assert_eq!(rig.json(&["ssh-keys", "list"])[0]["status"], "active");
}

#[test]
fn while_others_are_invited_a_known_key_among_unknown_ones_logs_in_as_ever() {
    let rig = Rig::with_alice();
    rig.ok(&["users", "add", "carol"]);
    invite(&rig, "carol");
    rig.keygen("id_work");
    let rsa = rig.path("id_rsa");
    let made =
        std::process::Command::new("ssh-keygen").args(["-q", "-t", "rsa", "-N", "", "-f"]).arg(&rsa).status();
    assert!(made.unwrap().success());
    let mut command = rig.client("ssh", "alice");
    // Named on the command line, they are offered before the one of the configuration.
    command.arg("-i").arg(&rsa).arg("-i").arg(rig.path("id_work")).args(["db-1", "echo in"]);
    let output = command.env("SSH_ASKPASS", rig.path("code_alice")).output().unwrap();
    let err = text(output.stderr);
    assert_eq!(text(output.stdout), "in\n", "{err}");
    assert!(!err.contains("nrolment code"), "nobody asked her for one: {err}");
    assert!(!rig.ok(&["logs", "tail", "-n", "50"]).contains("ssh_login_failed"), "an offer is no failure");
}

#[test]
fn a_key_that_cannot_be_added_stands_in_nobodys_way() {
    let rig = Rig::bastion();
    rig.ok(&["users", "add", "carol"]);
    rig.keygen("id_carol");
    let rsa = rig.path("id_rsa");
    let made =
        std::process::Command::new("ssh-keygen").args(["-q", "-t", "rsa", "-N", "", "-f"]).arg(&rsa).status();
    assert!(made.unwrap().success());
    person(&rig, "carol", &invite(&rig, "carol"));
    let output = rig.client("ssh", "carol").arg("-i").arg(&rsa).arg("bastion").output().unwrap();
    assert!(output.status.success(), "{}", text(output.stderr));
    assert_eq!(rig.json(&["ssh-keys", "list"])[0]["algorithm"], "ssh-ed25519");
}

#[test]
fn a_replacement_key_is_confirmed_with_the_authenticator_in_use() {
    let rig = Rig::with_alice();
    fs::remove_file(rig.path("id_alice")).unwrap();
    rig.keygen("id_alice2");
    fs::rename(rig.path("id_alice2"), rig.path("id_alice")).unwrap();
    fs::rename(rig.path("id_alice2.pub"), rig.path("id_alice.pub")).unwrap();
    let code = invite(&rig, "alice");
    rig.script("code_alice", &format!("case \"$1\" in *Enrolment*) echo {code} ;; *) echo 000000 ;; esac"));
    assert_eq!(desk(&rig, "alice").status.code(), Some(255), "an enrolment code is no second factor");
    assert_eq!(rig.json(&["ssh-keys", "list"]).as_array().unwrap().len(), 1);
    let totp = rig.path("totp_alice");
    rig.script(
        "code_alice",
        &format!("case \"$1\" in *Enrolment*) echo {code} ;; *) {} ;; esac", totp.display()),
    );
    let output = desk(&rig, "alice");
    assert!(output.status.success(), "{}", text(output.stderr));
    assert_eq!(rig.json(&["ssh-keys", "list"]).as_array().unwrap().len(), 2);
}

#[test]
fn after_a_reset_the_known_key_enrols_a_new_authenticator() {
    let rig = Rig::with_alice();
    rig.ok(&["mfa", "recovery-codes", "alice"]);
    let (enrolled, reset) = (rig.events("mfa_enrolled"), rig.events("mfa_reset"));
    assert_eq!((enrolled.len(), reset.len()), (1, 1), "new recovery codes are no enrolment");
    assert_eq!(reset[0]["what"], "recovery codes");
    rig.ok(&["mfa", "reset", "alice"]);
    person(&rig, "alice", &invite(&rig, "alice"));
    let script = fs::read_to_string(rig.path("code_alice")).unwrap();
    // The key is known, so the first question is the usual one.
    let code = script.lines().find_map(|l| l.strip_prefix("*'Enrolment code: ') ")).unwrap().to_owned();
    let script = script.replace(
        "*'Verification code: ') oathtool",
        &format!("*'Verification code: ') {code}\n*'never') oathtool"),
    );
    fs::write(rig.path("code_alice"), script).unwrap();
    let output = desk(&rig, "alice");
    assert!(output.status.success(), "{}\n{}", text(output.stderr), prompts(&rig, "alice"));
    assert_eq!(rig.json(&["ssh-keys", "list"]).as_array().unwrap().len(), 1, "no second key");
}

#[test]
fn who_cannot_log_in_is_not_invited() {
    let rig = Rig::with_alice();
    rig.ok(&["users", "suspend", "alice"]);
    assert_eq!(rig.run(&["users", "invite", "alice"]).status.code(), Some(5));
    assert_eq!(rig.run(&["users", "invite", "nobody"]).status.code(), Some(3));
}

#[test]
fn code_key_and_confirmation_count_only_in_their_order_and_for_one_name() {
    let rig = Rig::bastion();
    for user in ["carol", "dave"] {
        rig.ok(&["users", "add", user]);
    }
    rig.keygen("id_carol");
    person(&rig, "carol", "unused");
    let said = rig.paramiko(
        "carol",
        &format!(
            r#"
CODE = '{}'
asked = []
def answering(*answers):
    answers = list(answers)
    def handler(title, instructions, prompts):
        asked.append(''.join(p for p, _ in prompts))
        return [answers.pop(0)] if prompts else []
    return handler
def refused(step):
    try: result = step()
    except paramiko.SSHException: return
    sys.exit('not refused: %r, %r' % (result, asked))

# A key that signed for dave is not carol's: after her code a key is still due.
t = connect()
refused(lambda: t.auth_publickey('dave', KEY))
assert t.auth_interactive('carol', answering(CODE)) == ['publickey'], asked
# Offered for dave again, the code for carol is forgotten, and so the key is not asked for hers.
refused(lambda: t.auth_publickey('dave', KEY))
refused(lambda: t.auth_publickey('carol', KEY))
asked.clear()
refused(lambda: t.auth_interactive('carol', answering('123456')))
assert asked == ['Enrolment code: '], asked
t.close()

# The code for carol, then the question for dave: all is void.
t = connect()
assert t.auth_interactive('carol', answering(CODE)) == ['publickey'], asked
refused(lambda: t.auth_interactive('dave', answering(CODE)))
refused(lambda: t.auth_publickey('carol', KEY))
t.close()

# Code and key, but no code of the authenticator: no login, and nothing is stored.
t = connect()
assert t.auth_interactive('carol', answering(CODE)) == ['publickey'], asked
assert t.auth_publickey('carol', KEY) == ['keyboard-interactive'], asked
refused(lambda: t.auth_interactive('carol', answering(CODE)))
assert not t.is_authenticated()
print('done')
"#,
            invite(&rig, "carol")
        ),
    );
    assert_eq!(said, "done\n");
    assert_eq!(rig.json(&["ssh-keys", "list"]).as_array().unwrap().len(), 0);
    assert!(rig.events("mfa_enrolled").is_empty() && rig.events("ssh_login_succeeded").is_empty());
}

#[test]
fn whoever_came_before_a_lockdown_neither_logs_in_nor_enrols_during_it() {
    let rig = Rig::with_alice_and("[mfa]\nremember = \"1h\"\n");
    rig.ok(&["users", "add", "carol"]);
    rig.keygen("id_carol");
    let invitation = invite(&rig, "carol");
    let config = rig.path("bastion/keyward.toml");
    let keyward = format!("KEYWARD_CONFIG={} {}", config.display(), env!("CARGO_BIN_EXE_keyward"));
    rig.script("lock", &format!("{keyward} access deny-all --reason breach"));
    rig.script("unlock", &format!("{keyward} access deny-all --end"));
    let said = rig.paramiko(
        "alice",
        &format!(
            r#"
CAROL = paramiko.Ed25519Key.from_private_key_file(D + '/id_carol')
asked = []
def answering(answer):
    def handler(title, instructions, prompts):
        asked.append(''.join(p for p, _ in prompts))
        return [answer] if prompts else []
    return handler
def refused(step):
    try: result = step()
    except paramiko.SSHException: return
    sys.exit('not refused: %r' % (result,))
key_only = connect()
hall = connect()
assert hall.auth_publickey(USER, KEY) == ['keyboard-interactive']
enrolling = connect()
assert enrolling.auth_interactive('carol', answering('{invitation}')) == ['publickey'], asked
assert enrolling.auth_publickey('carol', CAROL) == ['keyboard-interactive'], asked
subprocess.check_call([D + '/lock'])
refused(lambda: hall.auth_interactive(USER, answering(code())))
refused(lambda: key_only.auth_publickey(USER, KEY))
refused(lambda: enrolling.auth_interactive('carol', answering('123456')))
assert not any(t.is_authenticated() for t in (key_only, hall, enrolling))
subprocess.check_call([D + '/unlock'])
# What was proven during it is void, nothing was remembered, and a new login is as ever.
again = connect()
assert again.auth_publickey(USER, KEY) == ['keyboard-interactive']
again.auth_interactive(USER, answering(code()))
assert again.is_authenticated()
print('done')
"#
        ),
    );
    assert_eq!(said, "done\n");
    assert_eq!(rig.json(&["ssh-keys", "list", "--user", "carol"]).as_array().unwrap().len(), 0);
    let failed = rig.events("ssh_login_failed");
    assert_eq!(failed.iter().filter(|e| e["reason"] == "lockdown").count(), 3, "{failed:?}");
    assert_eq!(rig.events("ssh_login_succeeded").len(), 1);
}
