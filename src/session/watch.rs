//! The watch: whatever changes in the vault, the live sessions and connections that it concerns are decided again.
//!
//! A right that was lost, or whose time ran out, cuts what lives by it within a second. What cannot be decided
//! (the store fails) counts as lost.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use keystore::lifecycle::in_grace;
use keystore::ssh::PublicKey;
use keystore::{
    CaRotation, Capability, Change, Instance, InstanceName, KeyRules, Login, Record, Role, Rule, User,
    UserKey, UserName,
};
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use super::registry::cut;
use super::{House, LiveInfo, Registered};
use crate::auth::CertificateId;
use crate::policy::{Decision, Facts, Rulebook};

/// Watches until `stop`. Run it as one task of the daemon.
pub async fn watch(house: Arc<House>, stop: CancellationToken) {
    let mut changes = house.vault.changes();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut answers = Answers::default();
    loop {
        let whose = tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => Some(Whose::Everybodys),
            change = changes.recv() => match change {
                Ok(change) => taken_up(&house, change).await,
                Err(RecvError::Lagged(_)) => {
                    recompile(&house).await;
                    Some(Whose::Everybodys)
                }
                Err(RecvError::Closed) => return,
            },
        };
        if let Some(whose) = whose {
            decide_again(&house, &whose, &mut answers).await;
        }
    }
}

/// Whose rights a change may end.
enum Whose {
    Everybodys,
    User(String),
    Key(String),
    Instance(String),
}

impl Whose {
    fn is(&self, info: &LiveInfo) -> bool {
        match self {
            Self::Everybodys => true,
            Self::User(name) => info.user.as_str() == name,
            Self::Key(fingerprint) => info.key == *fingerprint,
            Self::Instance(name) => info.to.as_ref().is_some_and(|(to, ..)| to.as_str() == name),
        }
    }
}

/// Takes a change of the vault into what the house holds of it, and tells whose rights it may end.
async fn taken_up(house: &House, change: Change) -> Option<Whose> {
    match change.kind.as_str() {
        Rule::KIND => {
            recompile(house).await;
            Some(Whose::Everybodys)
        }
        CaRotation::KIND => {
            if let Err(error) = house.signers.reload(&house.vault).await {
                tracing::error!(%error, "ca.not_reloaded");
            }
            None
        }
        User::KIND => Some(Whose::User(change.id)),
        UserKey::KIND => Some(Whose::Key(change.id)),
        Instance::KIND => Some(Whose::Instance(change.id)),
        _ => None,
    }
}

/// Compiles the stored rules into the house's rulebook. If they cannot be read, nothing is allowed.
pub async fn recompile(house: &House) {
    // One after the other: rules that were read earlier must not be put in the place of those read later.
    let _turn = COMPILING.lock().await;
    let compiled = match house.vault.list::<Rule>().await {
        Ok(rules) => Rulebook::compile(&rules).map_err(|e| e.to_string()),
        Err(error) => Err(error.to_string()),
    };
    match compiled.or_else(|why| {
        tracing::error!(%why, "rules.unreadable: nothing is allowed until they are repaired");
        Rulebook::compile(&[])
    }) {
        Ok(rulebook) => house.rulebook.store(Arc::new(rulebook)),
        Err(error) => tracing::error!(%error, "rules.empty_set_refused"),
    }
}

async fn decide_again(house: &House, whose: &Whose, answers: &mut Answers) {
    let mut round = Round::new(house, answers, Timestamp::now());
    let mut lost = Vec::new();
    for live in house.registry.live_where(|info| whose.is(info)) {
        if live.is_cut() {
            continue;
        }
        if let Some(sentence) = round.lost(&live.info).await {
            lost.push((live, sentence));
        }
    }
    // All together: the last of a thief's thousand ends as soon as the first.
    cut(&lost, None);
    if matches!(whose, Whose::Everybodys) {
        round.forget_the_others();
    }
}

/// Enters what was let in into the registry, then asks once more: what it lost between its proof and now cuts it here, what
/// it loses from now on the watch sees.
pub async fn enter(house: &House, info: LiveInfo, now: Timestamp) -> Registered {
    let registered = house.registry.enter(info.clone());
    if let Some(sentence) = lost_right(house, &info, now).await.or_else(|| too_many(house, &info)) {
        registered.cut(&sentence);
    }
    registered
}

/// The sentence for who has more open than one user may. What is asked about is in the registry already, so of two that
/// come at once neither slips by.
pub(super) fn too_many(house: &House, info: &LiveInfo) -> Option<String> {
    let most = house.config().limits.per_user;
    (house.registry.of_user(&info.user) > most).then(|| {
        format!(
            "You have {most} connections and sessions open here, which is as many as you may: close some."
        )
    })
}

/// The sentence that tells why `info` may not go on, or `None` if it may.
pub(super) async fn lost_right(house: &House, info: &LiveInfo, now: Timestamp) -> Option<String> {
    Round::new(house, &mut Answers::default(), now).lost(info).await
}

/// What a live session came with: user, key, certificate, and whether that serves to exchange the key alone.
type Came = (UserName, String, Option<CertificateId>, bool);

/// Everything that lives is decided at one moment: what many have in common is looked up and decided once.
struct Round<'a> {
    house: &'a House,
    now: Timestamp,
    rulebook: Arc<Rulebook>,
    logins: HashMap<Came, Result<User, String>>,
    instances: HashMap<InstanceName, Result<Instance, String>>,
    answers: &'a mut Answers,
}

impl<'a> Round<'a> {
    fn new(house: &'a House, answers: &'a mut Answers, now: Timestamp) -> Self {
        answers.round += 1;
        let rulebook = house.rulebook.load_full();
        Self { house, now, rulebook, logins: HashMap::new(), instances: HashMap::new(), answers }
    }

    async fn lost(&mut self, info: &LiveInfo) -> Option<String> {
        self.decided(info).await.err()
    }

    async fn decided(&mut self, info: &LiveInfo) -> Result<(), String> {
        let login = (info.user.clone(), info.key.clone(), info.certificate, info.only_exchanges);
        if !self.logins.contains_key(&login) {
            let by = LoggedIn {
                user: &info.user,
                key: &info.key,
                certificate: info.certificate,
                only_exchanges: info.only_exchanges,
            };
            let found = still_in(self.house, by, self.now).await;
            self.logins.insert(login.clone(), found);
        }
        let user = self.logins.get(&login).ok_or(UNDECIDED)?.as_ref().map_err(Clone::clone)?;
        let Some((name, login, can)) = &info.to else { return Ok(()) };
        if !self.instances.contains_key(name) {
            let found = match self.house.vault.get::<Instance>(name.as_str()).await {
                Ok(Some(instance)) => Ok(instance),
                Ok(None) => Err(removed(name)),
                Err(_) => Err(UNDECIDED.to_owned()),
            };
            self.instances.insert(name.clone(), found);
        }
        let instance = self.instances.get(name).ok_or(UNDECIDED)?.as_ref().map_err(Clone::clone)?;
        if !is_on(info, instance) {
            return Err(removed(name));
        }
        let asked = Asked {
            user: info.user.clone(),
            roles: user.roles.clone(),
            source: info.source.ip(),
            instance: name.clone(),
            login: login.clone(),
        };
        if self.answers.cover(asked, instance, (&self.rulebook, self.now), can) {
            Ok(())
        } else {
            Err(format!("Your access to {login}@{name} has ended."))
        }
    }

    /// Drops the answers that nobody needed in this round.
    fn forget_the_others(self) {
        let round = self.answers.round;
        self.answers.held.retain(|_, held| held.round == round);
    }
}

/// What the rules said lately. To decide costs most of a round, and an answer holds for as long as what it rests on.
#[derive(Default)]
struct Answers {
    round: u64,
    held: HashMap<Asked, Held>,
}

#[derive(PartialEq, Eq, Hash)]
struct Asked {
    user: UserName,
    roles: BTreeSet<Role>,
    source: IpAddr,
    instance: InstanceName,
    login: Login,
}

struct Held {
    decision: Decision,
    rulebook: Arc<Rulebook>,
    instance: Instance,
    at: Timestamp,
    round: u64,
}

impl Held {
    /// Rules only ever end: what one allowed, it allows until [`Decision::until`], unless the clock went back to a time
    /// in which one that denies had not ended yet.
    fn holds(&self, instance: &Instance, (rulebook, now): (&Arc<Rulebook>, Timestamp)) -> bool {
        Arc::ptr_eq(&self.rulebook, rulebook)
            && self.instance == *instance
            && self.at <= now
            && self.decision.until.is_none_or(|end| now < end)
    }
}

impl Answers {
    /// Whether the rules still give all of `can`.
    fn cover(
        &mut self,
        asked: Asked,
        instance: &Instance,
        (rulebook, now): (&Arc<Rulebook>, Timestamp),
        can: &BTreeSet<Capability>,
    ) -> bool {
        let round = self.round;
        // What it did not give then, it may give now that a rule that denied has ended: nobody is cut by an old answer.
        if let Some(held) = self.held.get_mut(&asked)
            && held.holds(instance, (rulebook, now))
            && can.is_subset(&held.decision.can)
        {
            held.round = round;
            return true;
        }
        let facts = Facts { user: &asked.user, roles: &asked.roles, source: asked.source };
        let decision = rulebook.decide(&facts, instance, &asked.login, now);
        let covered = can.is_subset(&decision.can);
        let (rulebook, instance) = (Arc::clone(rulebook), instance.clone());
        self.held.insert(asked, Held { decision, rulebook, instance, at: now, round });
        covered
    }
}

/// Who logged in some time ago.
#[derive(Debug, Clone, Copy)]
pub struct LoggedIn<'a> {
    /// The user.
    pub user: &'a UserName,
    /// Fingerprint of the key that signed.
    pub key: &'a str,
    /// The certificate that it was made with, if it was one.
    pub certificate: Option<CertificateId>,
    /// The key had expired at the login: it may only be exchanged.
    pub only_exchanges: bool,
}

/// The user as stored now, if a login of `by` still counts.
///
/// # Errors
/// The sentence that tells why it does not.
pub async fn still_in(house: &House, by: LoggedIn<'_>, now: Timestamp) -> Result<User, String> {
    if let Some(reason) = house.guard.lockdown().reason() {
        return Err(lockdown_sentence(&reason));
    }
    let user = match house.vault.get::<User>(by.user.as_str()).await {
        Ok(Some(user)) => user,
        Ok(None) => return Err("Your account was removed.".to_owned()),
        Err(_) => return Err(UNDECIDED.to_owned()),
    };
    if user.suspended.is_some() {
        return Err("Your account was suspended.".to_owned());
    }
    if user.expires_at.is_some_and(|end| end <= now) {
        return Err("Your account has expired.".to_owned());
    }
    let rules = Arc::clone(&house.config().keys);
    match house.vault.get::<UserKey>(by.key).await {
        Ok(Some(key)) if !accepts(&rules, &key) => {
            Err(format!("Keys of the kind {} are no longer accepted, and {} is one.", key.algorithm, key.id))
        }
        Ok(Some(key)) if key.user == *by.user && key.usable(now) => Ok(user),
        Ok(Some(key)) if by.only_exchanges && in_grace(&key, rules.of(&user).grace, now) => Ok(user),
        Ok(Some(key)) => Err(format!("Your key {} is {}.", key.id, key.status_at(now))),
        Ok(None) => match house.certificates.standing(by.user, by.certificate, now) {
            Some((_, true)) if !house.certificates.kind_accepted(by.certificate, &rules.accepted) => {
                Err("Keys of your certificate's kind are no longer accepted.".to_owned())
            }
            Some((_, true)) => Ok(user),
            Some((_, false)) => Err("Your certificate has expired or was revoked.".to_owned()),
            None => Err("Your key was removed.".to_owned()),
        },
        Err(_) => Err(UNDECIDED.to_owned()),
    }
}

/// Whether the rules of now still take a key of this kind: stricter ones end what lives by others, as they end logins.
fn accepts(rules: &KeyRules, key: &UserKey) -> bool {
    PublicKey::from_openssh(&key.public_key).is_ok_and(|key| rules.accepted.takes(&key).is_ok())
}

/// Whether it lives on this instance, and not on one that was removed and whose name this one has.
fn is_on(info: &LiveInfo, instance: &Instance) -> bool {
    info.instance_added.is_none_or(|added| added == instance.added_at)
}

fn removed(name: &InstanceName) -> String {
    format!("{name} is no longer reached through this bastion.")
}

/// What those hear who are cut by a lockdown.
pub fn lockdown_sentence(reason: &str) -> String {
    format!("Nobody may use this bastion for now: {reason}.")
}

static COMPILING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
const UNDECIDED: &str = "Your access can no longer be checked.";
/// How late an expiry (of a user, key or rule) may be noticed. Changes are noticed at once.
const TICK: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use keystore::{Effect, HostTrust, Rule, SignsIn, Subject, Target};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn rule(effect: Effect, can: Capability, expires_at: Option<Timestamp>) -> Rule {
        Rule {
            id: format!("{effect:?}-{can}"),
            effect,
            subject: Subject::User("alice".parse().unwrap()),
            target: Target::Instance("db-1".parse().unwrap()),
            logins: ["ubuntu".parse().unwrap()].into(),
            can: [can].into(),
            from: Vec::new(),
            expires_at,
            recording: None,
            added_at: at(0),
        }
    }

    fn db_1() -> Instance {
        Instance {
            name: "db-1".parse().unwrap(),
            aliases: BTreeSet::new(),
            address: "192.0.2.9:22".parse().unwrap(),
            logins: ["ubuntu".parse().unwrap()].into(),
            labels: Default::default(),
            host_trust: HostTrust::Pinned(Vec::new()),
            credential: SignsIn::default(),
            added_at: at(0),
        }
    }

    /// Rounds, each one second of the watch, that share their answers.
    struct Rounds {
        answers: Answers,
        rulebook: Arc<Rulebook>,
    }

    impl Rounds {
        fn of(rules: &[Rule]) -> Self {
            Self { answers: Answers::default(), rulebook: Arc::new(Rulebook::compile(rules).unwrap()) }
        }

        fn give(&mut self, can: &[Capability], second: i64) -> bool {
            self.answers.round += 1;
            let asked = Asked {
                user: "alice".parse().unwrap(),
                roles: BTreeSet::new(),
                source: "192.0.2.1".parse().unwrap(),
                instance: "db-1".parse().unwrap(),
                login: "ubuntu".parse().unwrap(),
            };
            let can = can.iter().copied().collect();
            self.answers.cover(asked, &db_1(), (&self.rulebook, at(second)), &can)
        }
    }

    #[test]
    fn whoever_came_after_a_denial_ended_is_not_cut_by_what_was_decided_before() {
        use Capability::{Exec, Shell};
        let mut rounds = Rounds::of(&[
            rule(Effect::Allow, Shell, None),
            rule(Effect::Allow, Exec, None),
            rule(Effect::Deny, Exec, Some(at(10))),
        ]);
        assert!(rounds.give(&[Shell], 9));
        assert!(!rounds.give(&[Shell, Exec], 9));
        assert!(rounds.give(&[Shell], 10));
        assert!(rounds.give(&[Shell, Exec], 10), "allowed when it was opened, and still");
    }

    #[test]
    fn an_answer_ends_with_the_rule_it_rests_on_and_its_neighbour_stays() {
        use Capability::{Exec, Shell};
        let ends = rule(Effect::Allow, Exec, Some(at(10)));
        let mut rounds = Rounds::of(&[rule(Effect::Allow, Shell, None), ends]);
        assert!(rounds.give(&[Shell, Exec], 0) && rounds.give(&[Shell, Exec], 9));
        assert!(!rounds.give(&[Shell, Exec], 10));
        assert!(rounds.give(&[Shell], 10));
    }

    #[test]
    fn a_clock_that_goes_back_to_a_denial_finds_it() {
        use Capability::Shell;
        let denial = rule(Effect::Deny, Shell, Some(at(10)));
        let mut rounds = Rounds::of(&[rule(Effect::Allow, Shell, None), denial]);
        assert!(rounds.give(&[Shell], 20));
        assert!(!rounds.give(&[Shell], 5));
        assert!(rounds.give(&[Shell], 20));
    }

    #[test]
    fn a_namesake_is_another_instance() {
        let info = LiveInfo {
            session: Some("s1".to_owned()),
            user: "alice".parse().unwrap(),
            key: "SHA256:x".to_owned(),
            certificate: None,
            source: "192.0.2.1:5".parse().unwrap(),
            to: Some(("db-1".parse().unwrap(), "ubuntu".parse().unwrap(), [Capability::Shell].into())),
            instance_added: Some(at(0)),
            since: at(1),
            only_exchanges: false,
        };
        assert!(is_on(&info, &db_1()));
        assert!(!is_on(&info, &Instance { added_at: at(2), ..db_1() }));
    }

    #[test]
    fn new_rules_or_another_instance_void_every_answer() {
        use Capability::Shell;
        let mut rounds = Rounds::of(&[rule(Effect::Allow, Shell, None)]);
        assert!(rounds.give(&[Shell], 0));
        rounds.rulebook = Arc::new(Rulebook::compile(&[]).unwrap());
        assert!(!rounds.give(&[Shell], 1));
        let held = Rounds::of(&[rule(Effect::Allow, Shell, None)]);
        let answer = Held {
            decision: Decision::default(),
            rulebook: Arc::clone(&held.rulebook),
            instance: db_1(),
            at: at(0),
            round: 1,
        };
        assert!(answer.holds(&db_1(), (&held.rulebook, at(0))));
        let moved = Instance { address: "192.0.2.10:22".parse().unwrap(), ..db_1() };
        assert!(!answer.holds(&moved, (&held.rulebook, at(0))));
    }
}
