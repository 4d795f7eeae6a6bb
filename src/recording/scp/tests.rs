use super::*;

fn passed(words: &[&str], direction: Direction, bytes: &[u8]) -> Vec<Operation> {
    let mut scp = Scp::of(words).unwrap().unwrap();
    let mut done = Vec::new();
    for byte in bytes {
        assert!(scp.pass(direction, &[*byte], &mut done).is_ok());
    }
    scp.end(&mut done);
    done
}

#[test]
fn a_file_that_is_sent_is_named_sized_and_hashed() {
    let done = passed(&["-t", "/tmp/there"], Direction::ToInstance, b"C0644 5 up\nhello\0");
    let [file] = done.as_slice() else { panic!("{done:?}") };
    assert_eq!((file.deed, file.path.as_str(), file.bytes), (Deed::Written, "/tmp/there", 5));
    let hello = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    assert_eq!(file.sha256.as_deref(), Some(hello));
}

#[test]
fn files_in_directories_have_their_whole_path() {
    let stream = b"D0755 0 d\nC0644 1 a\nx\0D0755 0 e\nC0600 0 b\n\0E\nE\n";
    let done = passed(&["-r", "-t", "/tmp"], Direction::ToInstance, stream);
    let paths: Vec<&str> = done.iter().map(|o| o.path.as_str()).collect();
    assert_eq!(paths, ["/tmp/d/a", "/tmp/d/e/b"]);
}

#[test]
fn a_file_that_is_cut_off_says_so_and_has_no_hash() {
    let done = passed(&["-f", "x"], Direction::ToUser, b"C0644 5 x\nhel");
    assert_eq!((done[0].bytes, done[0].sha256.is_none()), (3, true));
    assert!(done[0].fault.is_some());
}

use Direction::{ToInstance as UP, ToUser as DOWN};

/// What both sides say, in order.
fn spoken(words: &[&str], said: &[(Direction, &[u8])]) -> Result<Vec<Operation>, &'static str> {
    let mut scp = Scp::of(words).unwrap().unwrap();
    let mut done = Vec::new();
    for (direction, bytes) in said {
        for byte in *bytes {
            scp.pass(*direction, &[*byte], &mut done).map_err(|deviates| deviates.0)?;
        }
    }
    scp.end(&mut done);
    Ok(done)
}

fn named(done: &[Operation]) -> Vec<(&str, u64, bool)> {
    done.iter().map(|o| (o.path.as_str(), o.bytes, o.fault.is_some())).collect()
}

#[test]
fn no_file_hides_in_the_content_of_one_that_was_refused() {
    let refuses: &[u8] = b"\x01scp: /tmp/dir: Is a directory\n";
    let evil: [(Direction, &[u8]); 4] =
        [(UP, b"C0644 5 evil\n"), (DOWN, b"\0"), (UP, b"hello\0"), (DOWN, b"\0")];
    let up = [[(DOWN, &b"\0"[..]), (UP, b"C0644 9999 dir\n"), (DOWN, refuses)].as_slice(), &evil].concat();
    let done = spoken(&["-d", "-t", "/tmp"], &up).unwrap();
    assert_eq!(named(&done), [("/tmp/dir", 0, true), ("/tmp/evil", 5, false)]);
    assert!(done[0].fault.as_deref().unwrap().contains("Is a directory"), "{done:?}");
    // The same the other way, in which any word is a refusal.
    let down: Vec<(Direction, &[u8])> =
        up.iter().map(|(d, b)| (if *d == UP { DOWN } else { UP }, *b)).collect();
    assert_eq!(
        named(&spoken(&["-f", "/tmp/*"], &down).unwrap()),
        [("/tmp/dir", 0, true), ("/tmp/evil", 5, false)]
    );
    let word = [[(DOWN, &b"C0644 9999 dir\n"[..]), (UP, b"no, the next\n")].as_slice(), &down[3..]].concat();
    assert_eq!(
        named(&spoken(&["-f", "/tmp/*"], &word).unwrap()),
        [("/tmp/dir", 0, true), ("/tmp/evil", 5, false)]
    );
    // Who does not wait for the answer is not read on, and nothing of it is called whole.
    let early = [(DOWN, &b"\0"[..]), (UP, b"C0644 9999 dir\nC0644 5 evil\nhello\0"), (DOWN, refuses)];
    assert!(spoken(&["-d", "-t", "/tmp"], &early).is_err());
    let never = [(UP, &b"C0644 5 x\nhello\0"[..])];
    assert!(spoken(&["-t", "/tmp/x"], &never).unwrap()[0].fault.as_deref().unwrap().contains("wait"));
}

#[test]
fn a_directory_that_was_refused_is_in_no_path() {
    let said: [(Direction, &[u8]); 6] = [
        (UP, b"D0755 0 file\n"),
        (DOWN, b"\x01scp: /tmp/file: Not a directory\n"),
        (UP, b"C0644 1 evil\n"),
        (DOWN, b"\0"),
        (UP, b"x\0"),
        (DOWN, b"\0"),
    ];
    assert_eq!(named(&spoken(&["-r", "-d", "-t", "/tmp"], &said).unwrap()), [("/tmp/evil", 1, false)]);
    let mut taken = said;
    taken[1].1 = b"\0";
    assert_eq!(named(&spoken(&["-r", "-d", "-t", "/tmp"], &taken).unwrap()), [("/tmp/file/evil", 1, false)]);
}

#[test]
fn a_fault_has_an_end_and_what_follows_it_is_a_line() {
    let words = vec![b'w'; 2046];
    let said: [(Direction, &[u8]); 9] = [
        (UP, b"C0644 1 a\n"),
        (DOWN, b"\0"),
        (UP, b"x\x01"),
        (UP, &words),
        (UP, b"w"),
        (DOWN, b"\0"),
        (UP, b"C0644 5 evil\n"),
        (DOWN, b"\0"),
        (UP, b"hello\0"),
    ];
    let done = spoken(&["-d", "-t", "/tmp"], &said).unwrap();
    assert_eq!(named(&done), [("/tmp/a", 1, true), ("/tmp/evil", 5, false)]);
    let full = [(UP, &b"C0644 1 a\n"[..]), (DOWN, b"\0"), (UP, b"x\0"), (DOWN, b"\x01scp: No space\n")];
    let done = spoken(&["-t", "/a"], &full).unwrap();
    assert!(done[0].sha256.is_none() && done[0].fault.as_deref().unwrap().contains("No space"));
}

#[test]
fn a_file_bears_the_name_of_the_one_that_was_read() {
    let both = b"C0600 1 id_rsa\nx\0C0644 1 decoy\ny\0";
    let done = passed(&["-f", "/root/id_rsa", "/tmp/decoy"], DOWN, both);
    let paths: Vec<&str> = done.iter().map(|o| o.path.as_str()).collect();
    assert_eq!(paths, ["/root/id_rsa", "/tmp/decoy"]);
    let alike = passed(&["-f", "/root/x", "/tmp/x"], DOWN, b"C0644 1 x\nx\0");
    assert_eq!((alike[0].path.as_str(), alike[0].or_path.as_deref()), ("/root/x", Some("/tmp/x")));
    let tree = passed(&["-r", "-f", "/srv/"], DOWN, b"D0755 0 srv\nD0755 0 e\nC0644 1 x\nx\0E\nE\n");
    assert_eq!(tree[0].path, "/srv/e/x");
}

#[test]
fn a_target_that_may_be_a_directory_is_told_both_ways() {
    let at = |words: &[&str], stream: &[u8]| {
        let done = passed(words, UP, stream);
        (done[0].path.clone(), done[0].or_path.clone())
    };
    let file = b"C0644 1 x\ny\0";
    assert_eq!(at(&["-t", "/etc/cron.d"], file), ("/etc/cron.d".into(), Some("/etc/cron.d/x".into())));
    for certain in [["-d", "-t", "/etc/cron.d"].as_slice(), &["-t", "/etc/cron.d/"]] {
        assert_eq!(at(certain, file), ("/etc/cron.d/x".into(), None));
    }
    assert_eq!(at(&["-t", "."], file), ("./x".into(), None));
    assert_eq!(
        at(&["-r", "-t", "/new"], b"D0755 0 d\nC0644 1 x\ny\0E\n"),
        ("/new/d/x".into(), Some("/new/x".into()))
    );
}

#[test]
fn each_file_that_a_pattern_means_is_named() {
    let done = passed(&["-f", "/etc/*.conf"], Direction::ToUser, b"C0644 1 a.conf\nx\0C0644 1 b.conf\ny\0");
    let paths: Vec<&str> = done.iter().map(|o| o.path.as_str()).collect();
    assert_eq!(paths, ["/etc/a.conf", "/etc/b.conf"]);
}

#[test]
fn what_follows_the_end_of_one_copy_is_not_taken_for_its_files() {
    let mut scp = Scp::of(&["-t", "/tmp/harmless"]).unwrap().unwrap();
    let mut done = Vec::new();
    assert!(scp.pass(Direction::ToInstance, b"\x02done\nC0644 1 x\ny\0", &mut done).is_err());
    assert!(done.is_empty());
}

#[test]
fn a_shell_behind_the_name_scp_is_no_scp() {
    let mut scp = Scp::of(&["-t", "x"]).unwrap().unwrap();
    assert!(scp.pass(Direction::ToInstance, b"id; cat /etc/shadow\n", &mut Vec::new()).is_err());
    assert!(Scp::of(&["file", "host:"]).is_none());
}
