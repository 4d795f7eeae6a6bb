//! Which instance is meant.

use super::*;

fn instance(name: &str, alias: &str, address: &str) -> Instance {
    Instance {
        name: name.parse().unwrap(),
        aliases: [alias.parse().unwrap()].into(),
        address: address.parse().unwrap(),
        logins: BTreeSet::new(),
        labels: BTreeMap::new(),
        host_trust: HostTrust::Pinned(Vec::new()),
        credential: SignsIn::Certificate,
        added_at: Timestamp::UNIX_EPOCH,
    }
}

#[test]
fn a_name_goes_before_an_alias_and_that_before_an_address_at_its_port() {
    let all = [
        instance("a", "main", "db-1:22"),
        instance("b", "second", "db-1:2222"),
        instance("db-2", "x", "10.0.0.1:22"),
        instance("main.corp", "y", "second:22"),
        instance("z", "db-2.corp", "10.0.0.2:22"),
    ];
    let meant = |host: &str, port: Option<u16>| Instance::meant(&all, host, port).map(|i| i.name.as_str());
    assert_eq!(meant("DB-2", None), Some("db-2"));
    assert_eq!(meant("second", Some(22)), Some("b"), "not whose address is called so");
    assert_eq!(meant("db-1", Some(2222)), Some("b"));
    assert_eq!((meant("db-1", Some(22)), meant("db-1", Some(80))), (Some("a"), Some("a")));
    assert_eq!((meant("db-2.corp", None), meant("db-9", None)), (Some("z"), None));
    assert!(!all[0].is_named("db-1") && all[0].is_named("MAIN"));
}
