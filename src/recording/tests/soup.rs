//! Byte soup: what is cut, edited or not ours is never a whole tape, and never a panic. `KEYWARD_SOUP` is how many of each.

use proptest::prelude::*;

use super::*;

/// Reads everything there is; says whether it was a whole tape.
fn whole(bytes: &[u8]) -> bool {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    let open = || fs::File::open(file.path()).unwrap();
    frames::looks_complete(open());
    let Ok(mut reader) = Reader::open(open(), &[7; 32]) else { return false };
    drop(reader.seek(1000));
    drop(reader.next());
    let Ok(mut reader) = Reader::open(open(), &[7; 32]) else { return false };
    loop {
        match reader.next() {
            Ok(Some(_)) => {}
            Ok(None) => return reader.complete(),
            Err(_) => return false,
        }
    }
}

fn tape() -> Vec<u8> {
    let id = SessionId::new(Timestamp::UNIX_EPOCH);
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut writer = Writer::start(file.reopen().unwrap(), &header(id), &[7; 32]).unwrap();
    for (millis, text, last) in [(0, "one", false), (5, "two", false), (9, "three", true)] {
        let record = Record { millis, channel: 1, what: What::Output, payload: text.into() };
        let mut records = format::Records::default();
        records.push(&record, &record.payload).unwrap();
        writer.frame(&Plain { records: &records, last }).unwrap();
    }
    fs::read(file.path()).unwrap()
}

#[test]
fn a_whole_tape_is_whole() {
    assert!(whole(&tape()));
}

#[test]
fn a_gigabyte_of_nothing_is_read_in_little_memory() {
    let dir = tempfile::tempdir().unwrap();
    let keys = TapeKeys::create(&dir.path().join("identity")).unwrap();
    let (tapes, _) = Tapes::open(&dir.path().join("tapes"), keys, TERMS).unwrap();
    let id = SessionId::new(Timestamp::now());
    for (file, start) in [
        (tapes.summary_file(id), Vec::new()),
        (tapes.summary_file(id), b"{\"id\":\"".to_vec()),
        (tapes.tape_file(id), Vec::new()),
        (tapes.tape_file(id), tape()),
        (tapes.tape_file(id).with_extension("key"), Vec::new()),
    ] {
        fs::write(tapes.tape_file(id).with_extension("key"), tapes.wrapped(&[7; 32])).unwrap();
        fs::write(&file, start).unwrap();
        // Sparse: it takes no disk.
        OpenOptions::new().write(true).open(&file).unwrap().set_len(1 << 30).unwrap();
        assert!(tapes.summary(id).is_err() && tapes.verify(id, None).is_err());
        assert!(
            tapes.frames(id, 0).is_err()
                && tapes.summary_digest(id).is_ok() == tapes.summary_file(id).exists()
        );
        if let Ok(mut reader) = Reader::open(fs::File::open(&file).unwrap(), &[7; 32]) {
            while let Ok(Some(_)) = reader.next() {}
            assert!(!reader.complete());
        }
        fs::remove_file(&file).unwrap();
    }
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let most: u64 = most.trim().trim_end_matches(" kB").parse().unwrap();
    // Other tests run beside it.
    assert!(most < 600 << 10, "{most} KiB");
}

/// What somebody does to a file: bytes changed, put in, taken out, moved.
fn spoilt() -> impl Strategy<Value = Vec<(u8, usize, usize, u8)>> {
    proptest::collection::vec((0u8..5, 0usize..4096, 1usize..200, 1u8..), 1..6)
}

fn spoil(bytes: &[u8], how: &[(u8, usize, usize, u8)]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for (kind, at, length, with) in how {
        if bytes.is_empty() {
            break;
        }
        let at = at % bytes.len();
        let end = (at + length).min(bytes.len());
        match kind {
            0 => bytes[at] ^= with,
            1 => drop(bytes.splice(at..at, std::iter::repeat_n(*with, *length))),
            2 => drop(bytes.drain(at..end)),
            3 => bytes[at..end].reverse(),
            _ => bytes.extend_from_within(at..end),
        }
    }
    bytes
}

fn many() -> ProptestConfig {
    let cases = std::env::var("KEYWARD_SOUP").ok().and_then(|n| n.parse().ok()).unwrap_or(256);
    ProptestConfig::with_cases(cases)
}

proptest! {
    #![proptest_config(many())]

    #[test]
    fn rubbish_is_never_a_tape(rubbish in proptest::collection::vec(any::<u8>(), 0..4096)) {
        prop_assert!(!whole(&rubbish));
        let header = tape().iter().take_while(|b| **b != b'\n').copied().chain(*b"\n").collect::<Vec<_>>();
        prop_assert!(!whole(&[header, rubbish].concat()));
    }

    #[test]
    fn a_changed_tape_is_never_whole(at in 0usize..4096, bits in 1u8.., extra in 0usize..9, how in spoilt()) {
        let tape = tape();
        let mut changed = tape.clone();
        let at = at % tape.len();
        changed[at] ^= bits;
        prop_assert!(!whole(&changed));
        prop_assert!(!whole(&tape[..at]));
        let longer = [tape.as_slice(), &vec![0; extra + 1]].concat();
        prop_assert!(!whole(&longer));
        let spoilt = spoil(&tape, &how);
        prop_assert!(spoilt == tape || !whole(&spoilt));
    }

    #[test]
    fn rubbish_in_a_frame_is_no_records(rubbish in proptest::collection::vec(any::<u8>(), 0..512)) {
        // Whatever it gives, it gives without a panic, and no more than there is.
        let found = format::decode(&rubbish, 0).unwrap_or_default();
        prop_assert!(found.len() <= rubbish.len());
    }

    #[test]
    fn a_spoilt_summary_says_nothing_else(how in spoilt()) {
        let ledger = ledger::Ledger::new(Terms { limit: 0, ..TERMS });
        let id = SessionId::new(Timestamp::UNIX_EPOCH);
        let summary = summary::Summary::of(header(id), ledger.summaries());
        let text = serde_json::to_vec(&summary).unwrap();
        let spoilt = spoil(&text, &how);
        // What still is one has another digest, which is the one that the trail names.
        if let Ok(other) = serde_json::from_slice::<Summary>(&spoilt) {
            prop_assert!(spoilt == text || other != summary || serde_json::to_vec(&other).unwrap() == text);
        }
    }

    #[test]
    fn rubbish_from_peers_is_read_without_a_panic(
        said in proptest::collection::vec((any::<bool>(), proptest::collection::vec(any::<u8>(), 0..300)), 0..20),
        command in "(scp -t /x|scp -rf /x|sftp-server|rsync --server -s|rsync --server . /x|git-receive-pack x|top|.*)",
        terminal in any::<bool>(),
    ) {
        let mut ledger = ledger::Ledger::new(TERMS);
        if terminal {
            ledger.observe(1, Direction::ToInstance, &pty());
        }
        ledger.observe(1, Direction::ToInstance, &ChannelMessage::Exec(Bytes::from(command)));
        let mut passed = 0;
        for (up, bytes) in said {
            passed += bytes.len() as u64;
            let direction = if up { Direction::ToInstance } else { Direction::ToUser };
            ledger.observe(1, direction, &ChannelMessage::Data(Bytes::from(bytes)));
            drop(ledger.operations(1));
        }
        ledger.closed(1);
        // Whatever it was: all that passed is kept, or named as a gap.
        let channel = ledger.summary(1).unwrap();
        let missing: u64 = channel.gaps().iter().map(|(bytes, _)| bytes).sum();
        prop_assert_eq!(channel.bytes_in + channel.bytes_out, passed);
        prop_assert_eq!(channel.captured_bytes + missing, passed);
    }
}
