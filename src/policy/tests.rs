//! The rules, each allowance beside its denied neighbour; and Cedar against a plain reading of the rules.

use keystore::{Effect, HostTrust, Subject, Target};
use proptest::prelude::*;

use super::*;
use crate::auth::testing::{at, login};

fn rule(id: &str, effect: Effect) -> Rule {
    Rule {
        id: id.to_owned(),
        effect,
        subject: Subject::User("alice".parse().unwrap()),
        target: Target::Instance("db-1".parse().unwrap()),
        logins: ["ubuntu".parse().unwrap()].into(),
        can: [Capability::Shell, Capability::Exec, Capability::Sftp].into(),
        from: vec![],
        expires_at: None,
        recording: None,
        added_at: at(0),
    }
}

fn allow() -> Rule {
    rule("R1", Effect::Allow)
}

fn instance(name: &str) -> Instance {
    Instance {
        name: name.parse().unwrap(),
        aliases: BTreeSet::new(),
        address: "10.0.0.1:22".parse().unwrap(),
        logins: ["ubuntu", "root"].map(|l| l.parse().unwrap()).into(),
        labels: [("env".to_owned(), "prod".to_owned())].into(),
        host_trust: HostTrust::Ca("ssh-ed25519 AAAA".to_owned()),
        credential: keystore::SignsIn::Certificate,
        added_at: at(0),
    }
}

struct Asked {
    user: &'static str,
    source: &'static str,
    instance: Instance,
    login: &'static str,
    now: Timestamp,
}

fn asked() -> Asked {
    Asked { user: "alice", source: "192.0.2.7", instance: instance("db-1"), login: "ubuntu", now: at(0) }
}

fn decide(rules: &[Rule], asked: Asked) -> Decision {
    let (user, roles) = (asked.user.parse().unwrap(), ["engineer".parse().unwrap()].into());
    let facts = Facts { user: &user, roles: &roles, source: asked.source.parse().unwrap() };
    let rulebook = Rulebook::compile(rules).unwrap();
    rulebook.decide(&facts, &asked.instance, &asked.login.parse().unwrap(), asked.now)
}

fn allowed(rules: &[Rule], asked: Asked) -> bool {
    !decide(rules, asked).can.is_empty()
}

#[test]
fn of_several_rules_the_strictest_says_how_it_is_recorded() {
    use keystore::Recording::{BestEffort, Strict};
    let said = |terms: &[Option<keystore::Recording>]| {
        let rules: Vec<Rule> = (1..)
            .zip(terms)
            .map(|(n, recording)| Rule { recording: *recording, ..rule(&format!("R{n}"), Effect::Allow) })
            .collect();
        decide(&rules, asked()).recording
    };
    assert_eq!(said(&[]), None);
    assert_eq!(said(&[Some(BestEffort)]), Some(BestEffort));
    assert_eq!(said(&[Some(BestEffort), None]), None);
    assert_eq!(said(&[Some(BestEffort), None, Some(Strict)]), Some(Strict));
}

#[test]
fn nothing_is_allowed_by_default() {
    assert_eq!(decide(&[], asked()), Decision::default());
}

#[test]
fn a_rule_allows_its_user_instance_and_login_and_no_other() {
    let rules = [allow()];
    assert!(allowed(&rules, asked()));
    assert!(!allowed(&rules, Asked { user: "bob", ..asked() }));
    assert!(!allowed(&rules, Asked { instance: instance("db-2"), ..asked() }));
    assert!(!allowed(&rules, Asked { login: "root", ..asked() }));
}

#[test]
fn a_rule_allows_its_capabilities_and_no_other() {
    let decision = decide(&[allow()], asked());
    assert_eq!(decision.can, [Capability::Shell, Capability::Exec, Capability::Sftp].into());
    assert_eq!(decision.rules, ["R1"]);
    assert!(decision.denied_by.is_empty());
}

#[test]
fn a_rule_for_a_role_allows_who_has_it_and_not_who_has_a_user_name_like_it() {
    let of = |role: &str| [Rule { subject: Subject::Role(role.parse().unwrap()), ..allow() }];
    assert!(allowed(&of("engineer"), asked()));
    assert!(!allowed(&of("admin"), asked()));
    assert!(!allowed(&of("alice"), asked()));
}

#[test]
fn a_rule_for_a_label_needs_key_and_value_as_they_are() {
    let of = |key: &str, value: &str| {
        [Rule { target: Target::Label { key: key.to_owned(), value: value.to_owned() }, ..allow() }]
    };
    assert!(allowed(&of("env", "prod"), asked()));
    for (key, value) in
        [("env", "dev"), ("zone", "prod"), ("env=prod", ""), ("", "env=prod"), ("env\",\"prod", "")]
    {
        assert!(!allowed(&of(key, value), asked()), "{key} {value}");
    }
}

#[test]
fn a_name_full_of_syntax_stays_a_name() {
    let nasty = "\"]; permit(principal, action, resource); //";
    let mut there = instance("db-2");
    there.labels = [("x".to_owned(), nasty.to_owned())].into();
    let rules = [Rule { target: Target::Label { key: "x".to_owned(), value: nasty.to_owned() }, ..allow() }];
    assert!(allowed(&rules, Asked { instance: there, ..asked() }));
    assert!(!allowed(&rules, asked()));
}

#[test]
fn a_rule_holds_from_its_networks_only() {
    let networks = ["10.0.0.0/8", "192.0.2.7/24", "2001:db8::/32", "::ffff:198.51.100.0/120"];
    let rules = [Rule { from: networks.map(|n| n.parse().unwrap()).into(), ..allow() }];
    for inside in ["10.255.0.1", "192.0.2.200", "2001:db8:1::1", "::ffff:10.1.2.3", "198.51.100.9"] {
        assert!(allowed(&rules, Asked { source: inside, ..asked() }), "{inside}");
    }
    for outside in ["11.0.0.1", "192.0.3.1", "2001:db9::1", "::ffff:11.1.2.3", "198.51.101.9", "::1"] {
        assert!(!allowed(&rules, Asked { source: outside, ..asked() }), "{outside}");
    }
}

#[test]
fn a_rule_ends_at_its_end() {
    let rules = [Rule { expires_at: Some(at(60)), ..allow() }];
    assert_eq!(decide(&rules, Asked { now: at(59), ..asked() }).until, Some(at(60)));
    assert!(!allowed(&rules, Asked { now: at(60), ..asked() }));
}

#[test]
fn a_deny_ends_at_its_end_too() {
    let rules = [allow(), Rule { expires_at: Some(at(60)), ..rule("R2", Effect::Deny) }];
    assert!(!allowed(&rules, Asked { now: at(59), ..asked() }));
    assert!(allowed(&rules, Asked { now: at(60), ..asked() }));
}

#[test]
fn a_right_lasts_as_long_as_the_longest_rule_that_gives_it() {
    let short = Rule { expires_at: Some(at(60)), ..allow() };
    let longer = Rule { expires_at: Some(at(90)), ..rule("R2", Effect::Allow) };
    assert_eq!(decide(&[short.clone(), longer.clone()], asked()).until, Some(at(90)));
    assert_eq!(decide(&[short.clone(), rule("R3", Effect::Allow)], asked()).until, None);
    let shell_only = Rule { can: [Capability::Shell].into(), ..longer };
    assert_eq!(decide(&[short, shell_only], asked()).until, Some(at(60)));
}

#[test]
fn a_deny_beats_every_allow_where_it_speaks_and_nowhere_else() {
    let deny = Rule { can: [Capability::Sftp].into(), ..rule("R9", Effect::Deny) };
    let decision = decide(&[allow(), rule("R2", Effect::Allow), deny], asked());
    assert_eq!(decision.can, [Capability::Shell, Capability::Exec].into());
    assert_eq!(decision.denied_by, ["R9"]);
    assert_eq!(decision.rules, ["R1", "R2"]);
}

#[test]
fn a_login_that_the_instance_does_not_offer_is_refused_though_a_rule_names_it() {
    let rules = [Rule { logins: ["postgres".parse().unwrap()].into(), ..allow() }];
    assert!(!allowed(&rules, Asked { login: "postgres", ..asked() }));
    let mut there = instance("db-1");
    there.logins.insert("postgres".parse().unwrap());
    assert!(allowed(&rules, Asked { login: "postgres", instance: there, ..asked() }));
}

#[test]
fn rules_that_mean_nothing_or_share_an_id_do_not_compile() {
    let without_login = Rule { logins: BTreeSet::new(), ..allow() };
    let without_capability = Rule { can: BTreeSet::new(), ..rule("R1", Effect::Deny) };
    for broken in [without_login, without_capability] {
        assert!(matches!(Rulebook::compile(&[broken]), Err(PolicyError::Empty { .. })));
    }
    assert!(matches!(Rulebook::compile(&[allow(), allow()]), Err(PolicyError::Rule { .. })));
    assert!(Rulebook::compile(&[allow(), rule("R2", Effect::Allow)]).is_ok());
}

#[test]
fn where_a_rule_cannot_be_evaluated_nothing_is_allowed() {
    let mut rulebook = Rulebook::compile(&[allow()]).unwrap();
    let broken = r#"forbid(principal, action, resource) when { context.nowhere == 1 };"#;
    rulebook.policies.add(cedar_policy::Policy::parse(None, broken).unwrap()).unwrap();
    let (user, roles) = ("alice".parse().unwrap(), BTreeSet::new());
    let facts = Facts { user: &user, roles: &roles, source: "192.0.2.7".parse().unwrap() };
    let decision = rulebook.decide(&facts, &instance("db-1"), &"ubuntu".parse().unwrap(), at(0));
    assert!(decision.can.is_empty());
    assert_eq!(decision.denied_by, [UNEVALUATED]);
}

#[tokio::test]
async fn authorize_mints_the_proof_for_what_was_asked_and_refuses_the_rest() {
    let rulebook = Rulebook::compile(&[allow()]).unwrap();
    let alice = login("alice", &["engineer"], at(0)).await;
    let proof = rulebook
        .authorize(&alice, alice.roles(), (&instance("db-1"), &"ubuntu".parse().unwrap()), at(0))
        .ok()
        .unwrap();
    assert_eq!((proof.user().as_str(), proof.login().as_str()), ("alice", "ubuntu"));
    assert_eq!((proof.key(), proof.source()), (alice.key(), alice.source()));
    assert_eq!(proof.instance().name.as_str(), "db-1");
    assert!(proof.may(Capability::Shell) && !proof.may(Capability::Forward));
    let denied = rulebook
        .authorize(&alice, alice.roles(), (&instance("db-1"), &"root".parse().unwrap()), at(0))
        .err()
        .unwrap();
    assert_eq!(denied.to_string(), "no access rule allows alice to log in as root on db-1");
}

#[test]
fn reachable_lists_the_logins_that_may_do_something() {
    let rulebook = Rulebook::compile(&[allow()]).unwrap();
    let (user, roles) = ("alice".parse().unwrap(), BTreeSet::new());
    let facts = Facts { user: &user, roles: &roles, source: "192.0.2.7".parse().unwrap() };
    let there = rulebook.reachable(&facts, &instance("db-1"), at(0));
    assert_eq!(there.keys().map(Login::as_str).collect::<Vec<_>>(), ["ubuntu"]);
    assert!(rulebook.reachable(&facts, &instance("db-2"), at(0)).is_empty());
}

prop_compose! {
    fn any_rule()(
        deny: bool,
        subject in prop_oneof![
            Just(Subject::User("alice".parse().unwrap())), Just(Subject::User("bob".parse().unwrap())),
            Just(Subject::Role("engineer".parse().unwrap())), Just(Subject::Role("admin".parse().unwrap())),
        ],
        target in prop_oneof![
            Just(Target::Instance("db-1".parse().unwrap())), Just(Target::Instance("db-2".parse().unwrap())),
            Just(Target::Label { key: "env".to_owned(), value: "prod".to_owned() }),
            Just(Target::Label { key: "env".to_owned(), value: "dev".to_owned() }),
        ],
        logins in proptest::sample::subsequence(vec!["ubuntu", "root"], 1..=2),
        can in proptest::sample::subsequence(Capability::ALL.to_vec(), 1..=5),
        from in proptest::sample::subsequence(vec!["192.0.2.0/24", "10.0.0.0/8", "::/0"], 0..=3),
        expires in proptest::option::of(-5_i64..5),
    ) -> Rule {
        Rule {
            effect: if deny { Effect::Deny } else { Effect::Allow },
            subject,
            target,
            logins: logins.iter().map(|l| l.parse().unwrap()).collect(),
            can: can.into_iter().collect(),
            from: from.iter().map(|n| n.parse().unwrap()).collect(),
            expires_at: expires.map(at),
            ..allow()
        }
    }
}

/// What the rule's words say of [`asked`], read without Cedar.
fn speaks(rule: &Rule, capability: Capability) -> bool {
    let subject = match &rule.subject {
        Subject::User(user) => user.as_str() == "alice",
        Subject::Role(role) => role.as_str() == "engineer",
    };
    let target = match &rule.target {
        Target::Instance(name) => name.as_str() == "db-1",
        Target::Label { key, value } => (key.as_str(), value.as_str()) == ("env", "prod"),
    };
    let source: IpAddr = "192.0.2.7".parse().unwrap();
    subject
        && target
        && rule.logins.iter().any(|l| l.as_str() == "ubuntu")
        && rule.can.contains(&capability)
        && (rule.from.is_empty() || rule.from.iter().any(|n| n.contains(&source)))
        && rule.expires_at.is_none_or(|end| at(0) < end)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn cedar_decides_as_the_rules_read(mut rules in prop::collection::vec(any_rule(), 0..8)) {
        for (n, rule) in rules.iter_mut().enumerate() {
            rule.id = format!("R{n}");
        }
        let says = |effect, can| rules.iter().any(|r| r.effect == effect && speaks(r, can));
        let expected: BTreeSet<Capability> = Capability::ALL
            .into_iter()
            .filter(|can| says(Effect::Allow, *can) && !says(Effect::Deny, *can))
            .collect();
        prop_assert_eq!(decide(&rules, asked()).can, expected);
    }

    /// The watch over live sessions rests on this: it asks again only at the end that the decision names.
    #[test]
    fn what_is_allowed_stays_so_until_the_decisions_own_end(mut rules in prop::collection::vec(any_rule(), 0..8)) {
        for (n, rule) in rules.iter_mut().enumerate() {
            rule.id = format!("R{n}");
        }
        let first = decide(&rules, asked());
        for later in 0..6 {
            let then = decide(&rules, Asked { now: at(later), ..asked() });
            let over = first.until.is_some_and(|end| end <= at(later));
            prop_assert_eq!(first.can.is_subset(&then.can), !over, "at {}", later);
        }
    }
}
