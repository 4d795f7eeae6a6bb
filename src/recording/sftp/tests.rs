use super::*;

fn packet(kind: u8, id: u32, fields: &[&[u8]]) -> Vec<u8> {
    let mut body = vec![kind];
    body.extend(id.to_be_bytes());
    fields.iter().for_each(|field| body.extend_from_slice(field));
    [u32::try_from(body.len()).unwrap().to_be_bytes().as_slice(), &body].concat()
}

fn text(text: &[u8]) -> Vec<u8> {
    [u32::try_from(text.len()).unwrap().to_be_bytes().as_slice(), text].concat()
}

/// Both directions, a byte at a time.
fn passed(said: &[(Direction, Vec<u8>)]) -> Result<Vec<Operation>, &'static str> {
    let (mut sftp, mut done) = (Box::<Sftp>::default(), Vec::new());
    for (direction, bytes) in said {
        for byte in bytes {
            sftp.pass(*direction, &[*byte], &mut done).map_err(|deviates| deviates.0)?;
        }
    }
    sftp.end(&mut done);
    Ok(done)
}

use Direction::{ToInstance as UP, ToUser as DOWN};

#[test]
fn a_file_that_is_written_is_named_sized_and_hashed() {
    let hello = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    let done = passed(&[
        (UP, packet(OPEN, 1, &[&text(b"/tmp/x"), &[0; 8]])),
        (DOWN, packet(HANDLE, 1, &[&text(b"h")])),
        (UP, packet(WRITE, 2, &[&text(b"h"), &0u64.to_be_bytes(), &text(b"hel")])),
        (UP, packet(WRITE, 3, &[&text(b"h"), &3u64.to_be_bytes(), &text(b"lo")])),
        (DOWN, packet(STATUS, 2, &[&[0; 4]])),
        (DOWN, packet(STATUS, 3, &[&[0; 4]])),
        (UP, packet(CLOSE, 4, &[&text(b"h")])),
        (DOWN, packet(STATUS, 4, &[&[0; 4]])),
    ]);
    let done = done.unwrap();
    let [file] = done.as_slice() else { panic!("{done:?}") };
    assert_eq!((file.deed, file.path.as_str(), file.bytes), (Deed::Written, "/tmp/x", 5));
    assert_eq!(file.sha256.as_deref(), Some(hello));
}

#[test]
fn a_refused_write_is_no_whole_file() {
    let done = passed(&[
        (UP, packet(OPEN, 1, &[&text(b"/full"), &[0; 8]])),
        (DOWN, packet(HANDLE, 1, &[&text(b"h")])),
        (UP, packet(WRITE, 2, &[&text(b"h"), &0u64.to_be_bytes(), &text(b"hel")])),
        (DOWN, packet(STATUS, 2, &[&4u32.to_be_bytes(), &text(b"disk full")])),
    ]);
    let done = done.unwrap();
    assert!(done[0].sha256.is_none() && done[0].fault.as_deref().unwrap().contains("disk full"));
}

#[test]
fn a_shell_behind_the_subsystem_is_no_sftp() {
    assert!(passed(&[(UP, b"cat /etc/shadow\n".to_vec())]).is_err());
    assert!(passed(&[(UP, packet(77, 1, &[b"id"]))]).is_err());
    assert!(passed(&[(DOWN, packet(DATA, 9, &[&text(b"hidden")]))]).is_err());
}

#[test]
fn a_wrong_file_cannot_be_named_by_an_id_or_a_handle() {
    let open = |id, path: &[u8]| (UP, packet(OPEN, id, &[&text(path), &[0; 8]]));
    let write = (UP, packet(WRITE, 2, &[&text(b"h"), &0u64.to_be_bytes(), &text(b"x")]));
    let given = (DOWN, packet(HANDLE, 1, &[&text(b"h")]));
    assert!(passed(&[open(1, b"/etc/shadow"), open(1, b"/tmp/x")]).is_err());
    assert!(passed(&[open(1, b"/tmp/x"), write.clone()]).is_err());
    assert!(passed(&[open(1, b"/tmp/x"), given.clone(), given.clone()]).is_err());
    assert!(passed(&[(UP, packet(CLOSE, 1, &[&text(b"h")]))]).is_err());
    assert!(passed(&[open(1, b"/tmp/x"), given.clone(), write]).is_ok());
    // An id may be asked with again once it is answered; a directory has a handle too.
    let closed = [(UP, packet(CLOSE, 1, &[&text(b"h")])), (DOWN, packet(STATUS, 1, &[&[0; 4]]))];
    let opened = [(UP, packet(OPENDIR, 1, &[&text(b"/srv")])), given];
    assert!(passed(&[opened, closed].concat()).is_ok());
}

#[test]
fn versions_are_told_once_and_what_is_not_answered_is_told() {
    let init = (UP, [5u32.to_be_bytes().as_slice(), &[INIT, 0, 0, 0, 3]].concat());
    let version = (DOWN, [5u32.to_be_bytes().as_slice(), &[VERSION, 0, 0, 0, 3]].concat());
    let removal = (UP, packet(REMOVE, 1, &[&text(b"/b")]));
    let done = passed(&[init, version.clone(), removal.clone()]).unwrap();
    assert_eq!((done[0].deed, done[0].fault.as_deref()), (Deed::Removed, Some("not answered")));
    assert!(passed(&[version.clone(), version]).is_err());
}

#[test]
fn a_rename_and_a_removal_are_operations() {
    let done = passed(&[
        (UP, packet(RENAME, 1, &[&text(b"/a"), &text(b"/b")])),
        (DOWN, packet(STATUS, 1, &[&[0; 4]])),
        (UP, packet(REMOVE, 2, &[&text(b"/b")])),
        (DOWN, packet(STATUS, 2, &[&3u32.to_be_bytes(), &text(b"denied")])),
    ]);
    let done = done.unwrap();
    assert_eq!((done[0].deed, done[0].to.as_deref()), (Deed::Renamed, Some("/b")));
    assert_eq!((done[1].deed, done[1].fault.is_some()), (Deed::Removed, true));
}

fn ok(id: u32) -> (Direction, Vec<u8>) {
    (DOWN, packet(STATUS, id, &[&[0; 4]]))
}

fn opened(id: u32, path: &[u8], flags: u32, handle: &[u8]) -> [(Direction, Vec<u8>); 2] {
    let open = packet(OPEN, id, &[&text(path), &flags.to_be_bytes(), &[0; 4]]);
    [(UP, open), (DOWN, packet(HANDLE, id, &[&text(handle)]))]
}

#[test]
fn content_behind_a_close_is_not_that_of_the_file_that_was_closed() {
    let [open, given] = opened(1, b"/tmp/harmless", 2, b"h");
    let close = (UP, packet(CLOSE, 2, &[&text(b"h")]));
    let [evil, same] = opened(3, b"/etc/evil", 2, b"h");
    let write = (UP, packet(WRITE, 4, &[&text(b"h"), &0u64.to_be_bytes(), &text(b"x")]));
    // Handles are given anew at once: who guesses the next one needs no answer.
    let early =
        [open.clone(), given.clone(), close.clone(), evil.clone(), write.clone(), ok(2), same.clone()];
    assert!(passed(&early).is_err());
    for kind in [READ, FSETSTAT, CLOSE] {
        let use_again = (UP, packet(kind, 4, &[&text(b"h"), &[0; 12]]));
        assert!(passed(&[open.clone(), given.clone(), close.clone(), use_again]).is_err(), "{kind}");
    }
    // Who waits for the answers is read as ever; reads that were asked for before the end are answered after it.
    let done =
        passed(&[open.clone(), given.clone(), close.clone(), ok(2), evil, same, write, ok(4)]).unwrap();
    assert_eq!((done[1].path.as_str(), done[1].bytes), ("/etc/evil", 1));
    let read = (UP, packet(READ, 9, &[&text(b"h"), &[0; 12]]));
    let late = (DOWN, packet(DATA, 9, &[&text(b"hello")]));
    let done = passed(&[open, given, read, close, late, ok(2)]).unwrap();
    assert_eq!((done[0].deed, done[0].bytes), (Deed::Read, 5));
}

#[test]
fn a_file_that_is_made_or_emptied_was_written() {
    let close = [(UP, packet(CLOSE, 2, &[&text(b"h")])), ok(2)];
    for (flags, deed) in [
        (1, Deed::Read),
        (2, Deed::Written),
        (0x1a, Deed::Written),
        (0x11, Deed::Written),
        (9, Deed::Written),
    ] {
        let done = passed(&[opened(1, b"/etc/x", flags, b"h"), close.clone()].concat()).unwrap();
        let [file] = done.as_slice() else { panic!("{done:?}") };
        assert_eq!((file.deed, file.bytes, file.sha256.is_some()), (deed, 0, true), "{flags}");
        let refused =
            [opened(1, b"/etc/x", flags, b"h")[0].clone(), (DOWN, packet(STATUS, 1, &[&3u32.to_be_bytes()]))];
        assert_eq!(passed(&refused).unwrap()[0].deed, deed);
    }
}

#[test]
fn an_extension_that_is_not_known_is_told_if_the_server_has_it() {
    let asked = |name: &[u8], code: u32| {
        let copy = packet(EXTENDED, 1, &[&text(name), &text(b"/a"), &text(b"/b"), &[0]]);
        passed(&[(UP, copy), (DOWN, packet(STATUS, 1, &[&code.to_be_bytes()]))]).unwrap()
    };
    let done = asked(b"copy-file", 0);
    assert_eq!(done[0].deed, Deed::Changed);
    assert!(done[0].fault.as_deref().unwrap().contains("copy-file"));
    assert!(asked(b"copy-file", 8).is_empty() && asked(b"limits@openssh.com", 0).is_empty());
}

#[test]
fn names_that_nobody_answers_or_closes_are_held_in_little_memory() {
    let long = vec![b'x'; 4000];
    let asked: Vec<_> = (0..4000).map(|id| (UP, packet(REMOVE, id, &[&text(&long)]))).collect();
    assert!(passed(&asked[..1000]).is_ok() && passed(&asked).is_err());
    let files =
        |count: u32| (0..count).flat_map(|n| opened(n, &long, 2, &n.to_be_bytes())).collect::<Vec<_>>();
    assert!(passed(&files(1000)).is_ok());
    // Those that are answered and closed are forgotten.
    let all = (0..2000u32).flat_map(|n| {
        let close = (UP, packet(CLOSE, n, &[&text(b"h")]));
        [opened(n, &long, 2, b"h").as_slice(), &[close, ok(n)]].concat()
    });
    assert_eq!(passed(&all.collect::<Vec<_>>()).unwrap().len(), 2000);
    assert!(passed(&opened(1, b"/x", 2, &[7; 300])).is_err());
}
