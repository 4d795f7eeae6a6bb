//! What is run on an instance to change its `authorized_keys`: a POSIX shell script on the standard input of `/bin/sh -s`,
//! so that no login shell has anything to quote, and an answer that only the script can have given.
//!
//! The new file is written beside the old one with its owner and mode, and takes its name in one step. Whatever stands in
//! the way is said and leaves the file as it was. Nothing runs before the last line has arrived.

use keystore::{Credential, HeldKey};

/// What runs the scripts.
pub(super) const SHELL: &str = "/bin/sh -s";

/// Puts `next` beside the credential's key, with the options that its line has; does nothing if it is there.
pub(super) fn install(credential: &Credential, next: &HeldKey, mark: &str) -> String {
    let (old, new) = (blob(&credential.key), blob(next));
    let comment = comment(credential, next);
    script(
        mark,
        &format!(
            "  if grep -qF -- '{new}' \"$file\"; then done_; fi\n\
             \x20 begin\n\
             \x20 before=$(grep -F -- '{old}' \"$file\" | grep -v '^[[:space:]]*#' | head -n 1 | sed 's|{old}.*||')\n\
             \x20 [ -n \"$before\" ] || before='ssh-ed25519 '\n\
             \x20 {{ cat \"$file\" && {{ [ -z \"$(tail -c 1 \"$file\")\" ] || echo; }} && printf '%s%s\\n' \"$before\" '{new} {comment}'; }} > \"$part\" || fail \"$part cannot be written\"\n\
             \x20 end '{new}'\n"
        ),
    )
}

/// Removes `old`, if the credential's key is there; does nothing if it is gone.
pub(super) fn remove(credential: &Credential, old: &HeldKey, mark: &str) -> String {
    let (keep, old) = (blob(&credential.key), blob(old));
    script(
        mark,
        &format!(
            "  grep -qF -- '{keep}' \"$file\" || fail \"the key that works is not in $file\"\n\
             \x20 if ! grep -qF -- '{old}' \"$file\"; then done_; fi\n\
             \x20 begin\n\
             \x20 grep -vF -- '{old}' \"$file\" > \"$part\" || fail \"$part cannot be written\"\n\
             \x20 end '{keep}'\n"
        ),
    )
}

/// What a script answered: done, or why not. None of the words come from where they could be anything else.
pub(super) fn answer(said: &str, mark: &str) -> Result<(), String> {
    let words = said.lines().find_map(|line| line.trim_end().strip_prefix(mark)?.strip_prefix(' '));
    match words {
        Some("done") => Ok(()),
        Some(why) => Err(harmless(why.trim_start_matches("failed "), 200)),
        None => {
            let said = harmless(said, 120);
            Err(format!(
                "commands are not run there as they are asked for (a forced command, or no shell?); it said: {said:?}"
            ))
        }
    }
}

/// An instance's words, for logs and terminals: its own program may have said them.
fn harmless(said: &str, most: usize) -> String {
    said.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(most).collect()
}

/// Says whose line it is.
pub(super) fn comment(credential: &Credential, key: &HeldKey) -> String {
    let made = key.made_at.strftime("%Y-%m-%d");
    format!("keyward:{}:{}:{made}", credential.instance, credential.login)
}

/// The base64 part, which is what tells keys apart. Of `A-Za-z0-9+/=` alone: it needs no quoting in shell and sed.
fn blob(key: &HeldKey) -> &str {
    key.public_key.split_whitespace().nth(1).unwrap_or("none")
}

fn script(mark: &str, body: &str) -> String {
    format!("mark='{mark}'\n{FRAME}main() {{\n{OPEN}{body}}}\nmain\n")
}

const FRAME: &str = r#"umask 077
part=
fail() { [ -z "$part" ] || rm -f "$part"; printf '%s failed %s\n' "$mark" "$1"; exit 1; }
done_() { printf '%s done\n' "$mark"; exit 0; }
begin() {
  rm -f "$dir"/.keyward.??????
  sum=$(cksum < "$file")
  part=$(mktemp "$dir/.keyward.XXXXXX") || { part=; fail "$dir is not writable"; }
  cp -p "$file" "$part" || fail "$file cannot be copied"
}
end() {
  grep -qF -- "$1" "$part" || fail "$part was not written whole"
  sync "$part" 2>/dev/null || sync
  [ "$sum" = "$(cksum < "$file")" ] || fail "$file was being changed by somebody else"
  mv -f "$part" "$file" || fail "$file cannot be replaced"
  part=
  done_
}
"#;

const OPEN: &str = r#"  dir=$HOME/.ssh file=$HOME/.ssh/authorized_keys
  [ ! -h "$file" ] || fail "$file is a symbolic link"
  [ -f "$file" ] || fail "there is no $file; perhaps AuthorizedKeysFile of its sshd is another"
  [ -w "$file" ] || fail "$file is not writable"
"#;

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::auth::testing::at;

    fn held(letter: &str) -> HeldKey {
        let public_key = format!("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{}", letter.repeat(43));
        HeldKey { public_key, fingerprint: format!("SHA256:{letter}"), made_at: at(0) }
    }

    fn credential() -> Credential {
        Credential {
            instance: "db-1".parse().unwrap(),
            login: "svc$(id)".parse().unwrap_or_else(|_| "svc$".parse().unwrap()),
            key: held("+"),
            proven_at: Some(at(0)),
            next: Some(held("/")),
            installed: false,
            old: None,
            tried_at: None,
            fault: None,
        }
    }

    /// Runs it as an instance would; what it answered.
    fn run(home: &Path, script: &str) -> Result<(), String> {
        let mut shell = Command::new("/bin/sh");
        shell.arg("-s").env("HOME", home).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = shell.spawn().unwrap();
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        answer(&String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap(), "M")
    }

    fn home(lines: &str) -> tempfile::TempDir {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".ssh")).unwrap();
        std::fs::write(home.path().join(".ssh/authorized_keys"), lines).unwrap();
        home
    }

    fn file(home: &tempfile::TempDir) -> String {
        std::fs::read_to_string(home.path().join(".ssh/authorized_keys")).unwrap()
    }

    #[test]
    fn a_key_comes_beside_the_other_with_its_options_and_goes_again_alone() {
        let mut credential = credential();
        let (old, next) = (credential.key.clone(), held("/"));
        let theirs = "# theirs\nssh-rsa AAAAB3 somebody";
        let ours = format!("from=\"10.0.0.0/8\",no-X11-forwarding {} by hand", old.public_key);
        let home = home(&format!("{theirs}\n{ours}"));
        let path = home.path().join(".ssh/authorized_keys");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        for _ in 0..2 {
            run(home.path(), &install(&credential, &next, "M")).unwrap();
            let added = format!(
                "from=\"10.0.0.0/8\",no-X11-forwarding {} keyward:db-1:svc$:2027-01-15",
                next.public_key
            );
            assert_eq!(file(&home), format!("{theirs}\n{ours}\n{added}\n"));
        }
        // The old one does not go while the one that stays is not there.
        assert!(run(home.path(), &remove(&credential, &next, "M")).is_ok(), "a key that is not used may go");
        run(home.path(), &install(&credential, &next, "M")).unwrap();
        credential.key = held("x");
        let refused = run(home.path(), &remove(&credential, &old, "M")).unwrap_err();
        assert!(refused.starts_with("the key that works is not in "), "{refused}");
        credential.key = next.clone();
        for _ in 0..2 {
            run(home.path(), &remove(&credential, &old, "M")).unwrap();
            assert!(!file(&home).contains(&old.public_key) && file(&home).contains(&next.public_key));
            assert!(file(&home).starts_with(theirs), "{}", file(&home));
        }
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(
            std::fs::read_dir(home.path().join(".ssh")).unwrap().count(),
            1,
            "nothing is left beside it"
        );
    }

    #[test]
    fn what_stands_in_the_way_is_said_and_changes_nothing() {
        let (credential, next) = (credential(), held("/"));
        let script = install(&credential, &next, "M");
        let none = tempfile::tempdir().unwrap();
        assert!(run(none.path(), &script).unwrap_err().starts_with("there is no "));
        let linked = home("x\n");
        let path = linked.path().join(".ssh/authorized_keys");
        std::fs::rename(&path, linked.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(linked.path().join("elsewhere"), &path).unwrap();
        assert!(run(linked.path(), &script).unwrap_err().ends_with("is a symbolic link"));
        assert_eq!(file(&linked), "x\n");
        // What ends before it has arrived does nothing.
        let half = home("x\n");
        let cut = script.strip_suffix("main\n").unwrap();
        assert!(run(half.path(), cut).unwrap_err().contains("a forced command"));
        assert_eq!(file(&half), "x\n");
    }

    #[test]
    fn an_answer_counts_only_with_its_mark() {
        assert_eq!(answer("Welcome!\nM done\n", "M"), Ok(()));
        assert_eq!(answer("M failed it is full\n", "M"), Err("it is full".to_owned()));
        assert!(answer("done\n", "M").unwrap_err().contains("forced command"));
        assert_eq!(answer("M failed \u{1b}[2J\u{202e}gone\n", "M"), Err("[2Jgone".to_owned()));
        assert!(answer("\u{1b}[2Jno shell", "M").unwrap_err().contains("\"[2Jno shell\""));
    }
}
