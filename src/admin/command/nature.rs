//! What kind of thing each command is. No match here has a rest: a new command does not build until somebody has said
//! what it is.

use super::{
    Access, Ca, Command, Encryption, FromCopy, Instances, Logs, Mfa, Recording, Sessions, SshKeys, Users,
};

/// What a command that comes over SSH still lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::admin) enum FromAfar {
    /// Nothing.
    Whole,
    /// The key, which comes by standard input.
    Key,
    /// The host key of an instance, likewise.
    HostKey,
    /// Whose list it is, where that was not said.
    Whose,
    /// It is not said over SSH; why not, and what to type.
    Refused(&'static str),
}

impl Command {
    /// Whether it waits for its turn, so that what it finds out holds until it has written.
    pub(in crate::admin) fn changes(&self) -> bool {
        match self {
            Self::Users(command) => match command {
                Users::Add { .. } | Users::Invite { .. } | Users::Roles { .. } => true,
                Users::Suspend { .. } | Users::Resume { .. } | Users::Remove { .. } => true,
                Users::List | Users::Show { .. } => false,
            },
            Self::SshKeys(command) => match command {
                SshKeys::Add { .. } | SshKeys::Rotate { .. } | SshKeys::Revoke { .. } => true,
                SshKeys::List { .. } | SshKeys::Show { .. } | SshKeys::Report { .. } => false,
            },
            Self::Mfa(command) => match command {
                Mfa::Enroll { .. } | Mfa::Reset { .. } | Mfa::RecoveryCodes { .. } => true,
                Mfa::List => false,
            },
            Self::Instances(command) => match command {
                Instances::Add(_) | Instances::Remove { .. } => true,
                // Each credential has a turn of its own, and an instance takes its time.
                Instances::Rotate { .. } => false,
                Instances::List | Instances::Show { .. } | Instances::Credentials => false,
                Instances::TrustScript { .. } => false,
            },
            Self::Access(command) => match command {
                Access::Allow(_) | Access::Deny(_) | Access::Remove { .. } => true,
                // A lockdown waits for nobody.
                Access::DenyAll { .. } => false,
                Access::List | Access::Review | Access::Audit => false,
                Access::Export { .. } | Access::Explain { .. } => false,
            },
            Self::Ca(command) => match command {
                Ca::Rotate { .. } | Ca::Retire { .. } => true,
                Ca::Show { .. } | Ca::Check => false,
            },
            Self::Encryption(command) => match command {
                Encryption::Rotate { .. } => true,
                Encryption::Status => false,
            },
            // What they write stands on nothing that another command changes.
            Self::Sessions(_) | Self::Recording(_) | Self::Sources(_) => false,
            Self::Status | Self::Clock { .. } | Self::Logs(_) => false,
            Self::Console { .. } | Self::SshConfig { .. } => false,
        }
    }

    /// Whether the answer goes on for as long as somebody listens. Such a command only reads: its end may come at any
    /// moment.
    pub(in crate::admin) fn lasts(&self) -> bool {
        match self {
            Self::Sessions(command) => match command {
                Sessions::Watch { .. } | Sessions::Play { .. } => true,
                Sessions::List { .. } | Sessions::Show { .. } | Sessions::Transcript { .. } => false,
                Sessions::Search { .. } | Sessions::Gaps { .. } | Sessions::Export { .. } => false,
                Sessions::Bundle { .. } | Sessions::Verify { .. } | Sessions::Kill { .. } => false,
                Sessions::Hold { .. } | Sessions::Release { .. } | Sessions::Holds => false,
                Sessions::Approve { .. } => false,
            },
            Self::Logs(command) => match command {
                Logs::Tail { .. } => true,
                Logs::Export { .. } | Logs::Verify { .. } => false,
            },
            Self::Status | Self::Users(_) | Self::SshKeys(_) | Self::Mfa(_) | Self::Instances(_) => false,
            Self::Access(_) | Self::Recording(_) | Self::Encryption(_) | Self::Ca(_) => false,
            Self::Console { .. } | Self::SshConfig { .. } | Self::Clock { .. } | Self::Sources(_) => false,
        }
    }

    /// Whether it shows what was recorded. Who administers does not thereby read other people's sessions: that is the
    /// auditors' right.
    pub(in crate::admin) fn shows_recordings(&self) -> bool {
        match self {
            Self::Console { .. } => true,
            Self::Sessions(command) => match command {
                Sessions::Play { .. } | Sessions::Export { .. } | Sessions::Transcript { .. } => true,
                Sessions::Search { .. } | Sessions::Watch { .. } | Sessions::Bundle { .. } => true,
                Sessions::List { .. } | Sessions::Show { .. } | Sessions::Gaps { .. } => false,
                Sessions::Verify { .. } | Sessions::Hold { .. } | Sessions::Release { .. } => false,
                Sessions::Holds | Sessions::Approve { .. } | Sessions::Kill { .. } => false,
            },
            Self::Status | Self::Users(_) | Self::SshKeys(_) | Self::Mfa(_) | Self::Instances(_) => false,
            Self::Access(_) | Self::Logs(_) | Self::Recording(_) | Self::Encryption(_) => false,
            Self::Ca(_) | Self::SshConfig { .. } | Self::Clock { .. } | Self::Sources(_) => false,
        }
    }

    /// What it lacks over SSH, where files are those of another machine.
    pub(in crate::admin) fn over_ssh(&self) -> FromAfar {
        match self {
            Self::SshKeys(command) => match command {
                SshKeys::Add { .. } | SshKeys::Rotate { .. } => FromAfar::Key,
                SshKeys::List { .. } => FromAfar::Whose,
                SshKeys::Show { .. } | SshKeys::Report { .. } | SshKeys::Revoke { .. } => FromAfar::Whole,
            },
            Self::Sessions(command) => session_over_ssh(command),
            Self::Logs(command) => match command {
                Logs::Export { output, .. } => FromAfar::unless(output.is_some(), OUTPUT),
                Logs::Verify { state, identity, trust, heads } => {
                    let files = [state, identity, trust, heads];
                    FromAfar::unless(files.iter().any(|file| file.is_some()), STATE)
                }
                Logs::Tail { .. } => FromAfar::Whole,
            },
            Self::Access(command) => match command {
                Access::Export { output } => FromAfar::unless(output.is_some(), OUTPUT),
                Access::Allow(_) | Access::Deny(_) | Access::Remove { .. } => FromAfar::Whole,
                Access::List | Access::Review | Access::Audit => FromAfar::Whole,
                Access::DenyAll { .. } | Access::Explain { .. } => FromAfar::Whole,
            },
            Self::Instances(command) => match command {
                Instances::Add(_) => FromAfar::HostKey,
                Instances::List | Instances::Show { .. } | Instances::Remove { .. } => FromAfar::Whole,
                Instances::Credentials | Instances::Rotate { .. } => FromAfar::Whole,
                Instances::TrustScript { .. } => FromAfar::Whole,
            },
            Self::Recording(command) => match command {
                Recording::Rewrap { state, identity, .. } => {
                    FromAfar::unless(state.is_some() || identity.is_some(), STATE)
                }
            },
            // Its files lie on the bastion; who may name them is looked at where they are read.
            Self::Encryption(_) => FromAfar::Whole,
            Self::Status | Self::Users(_) | Self::Mfa(_) | Self::Ca(_) => FromAfar::Whole,
            Self::Console { .. } | Self::SshConfig { .. } | Self::Clock { .. } | Self::Sources(_) => {
                FromAfar::Whole
            }
        }
    }
}

fn session_over_ssh(command: &Sessions) -> FromAfar {
    let copied = |copy: &FromCopy| copy.state.is_some() || copy.identity.is_some();
    match command {
        Sessions::List { state: None, .. } => FromAfar::Whose,
        Sessions::List { state: Some(_), .. } => FromAfar::Refused(STATE),
        Sessions::Show { state, .. } | Sessions::Gaps { state, .. } => {
            FromAfar::unless(state.is_some(), STATE)
        }
        Sessions::Play { copy, .. } | Sessions::Transcript { copy, .. } | Sessions::Search { copy, .. } => {
            FromAfar::unless(copied(copy), STATE)
        }
        Sessions::Export { copy, .. } if copied(copy) => FromAfar::Refused(STATE),
        Sessions::Export { output, .. } | Sessions::Bundle { output, .. } => {
            FromAfar::unless(output.is_some(), OUTPUT)
        }
        Sessions::Verify { bundle: Some(_), .. } => FromAfar::Refused(BUNDLE),
        Sessions::Verify { bundle: None, state, identity, trust, .. } => {
            let files = [state, identity, trust];
            FromAfar::unless(files.iter().any(|file| file.is_some()), STATE)
        }
        Sessions::Watch { .. } | Sessions::Kill { .. } | Sessions::Approve { .. } => FromAfar::Whole,
        Sessions::Hold { .. } | Sessions::Release { .. } | Sessions::Holds => FromAfar::Whole,
    }
}

impl FromAfar {
    fn unless(named: bool, says: &'static str) -> Self {
        if named { Self::Refused(says) } else { Self::Whole }
    }
}

const STATE: &str = "keyward: --state names files of your own machine: use it there";
const BUNDLE: &str = "keyward: --bundle names a file of your own machine: use it there";
const OUTPUT: &str = "keyward: over SSH, leave --output out and redirect: … > FILE";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::said;

    fn over_ssh(line: &str) -> FromAfar {
        said(&shlex::split(line).unwrap()).unwrap_or_else(|fault| panic!("{line}: {}", fault.says)).over_ssh()
    }

    #[test]
    fn what_names_a_file_of_another_machine_is_not_said_over_ssh_and_the_same_without_it_is() {
        for (named, plain) in [
            ("sessions show s --state /x", "sessions show s"),
            ("sessions play s --state /x --identity /y", "sessions play s"),
            ("sessions search text --state /x --identity /y", "sessions search text"),
            ("sessions verify s --state /x", "sessions verify s"),
            ("sessions verify --bundle /x --trust /y", "sessions verify s"),
            ("sessions export s --output /x", "sessions export s"),
            ("sessions bundle s --output /x", "sessions bundle s"),
            ("logs export --start 1h --output /x", "logs export --start 1h"),
            ("logs verify --state /x", "logs verify"),
            ("access export --output /x", "access export"),
            ("recording rewrap --state /x --identity /y", "recording rewrap"),
        ] {
            assert!(matches!(over_ssh(named), FromAfar::Refused(_)), "{named}");
            assert_eq!(over_ssh(plain), FromAfar::Whole, "{plain}");
        }
        assert_eq!(over_ssh("sessions list --state /x"), FromAfar::Refused(STATE));
        assert_eq!(over_ssh("sessions list"), FromAfar::Whose);
        assert_eq!(over_ssh("ssh-keys rotate"), FromAfar::Key);
        let instance = "instances add db-1 --address 192.0.2.1:22 --login ubuntu --scan";
        assert_eq!(over_ssh(instance), FromAfar::HostKey);
    }
}
