//! Receivers that are slow, dead, rude or another, and trails that are not the ones they were.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, UdpSocket};

use jiff::Timestamp;
use keystore::Vault;
use keystore::backend::Memory;
use keystore::seal::MasterKey;
use keystore::signing::{AuditSigner, Signers};

use super::super::event::Event;
use super::*;

struct Desk {
    dir: tempfile::TempDir,
    trail: Arc<Trail>,
    signer: AuditSigner,
}

async fn desk() -> Desk {
    let vault = Vault::new(Arc::new(Memory::default()), MasterKey::generate().unwrap());
    desk_of(Signers::create(&vault).await.unwrap().audit)
}

fn desk_of(signer: AuditSigner) -> Desk {
    let dir = tempfile::tempdir().unwrap();
    let trail = Arc::new(Trail::open(&dir.path().join("audit"), signer.clone()).unwrap());
    Desk { dir, trail, signer }
}

impl Desk {
    async fn append(&self, count: usize) {
        for n in 0..count {
            let by = format!("user-{n}\u{1b}\u{202e}");
            self.trail.append(Event::LockdownEnded { by }, Timestamp::now()).await.unwrap();
        }
    }

    fn syslog(&self, address: &str) -> Receivers {
        let terms = SyslogTerms { address: address.parse().unwrap(), ca_file: None };
        Receivers { syslog: Some(terms), host: "bastion".to_owned(), webhook: None }
    }

    fn webhook(&self, port: u16) -> Receivers {
        let secret = self.dir.path().join("secret");
        std::fs::write(&secret, "0123456789abcdef\n").unwrap();
        let url = format!("http://127.0.0.1:{port}/in");
        Receivers { webhook: Some(WebhookTerms { url, secret, ca_file: None }), ..Receivers::default() }
    }
}

/// One message with octet counting.
fn counted(from: &mut impl BufRead) -> String {
    let mut length = Vec::new();
    from.read_until(b' ', &mut length).unwrap();
    let length: usize = String::from_utf8(length).unwrap().trim().parse().unwrap();
    let mut message = vec![0; length];
    from.read_exact(&mut message).unwrap();
    String::from_utf8(message).unwrap()
}

fn json_of(message: &str) -> serde_json::Value {
    serde_json::from_str(message.split_once('\u{feff}').unwrap().1).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn syslog_over_tcp_gets_every_event_in_order_with_the_signed_head_and_no_control_character() {
    let desk = desk().await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp://{}", listener.local_addr().unwrap());
    desk.append(3).await;
    desk.trail.checkpoint(Timestamp::now()).await.unwrap();
    let _outlets = Outlets::open(&desk.trail, desk.syslog(&address)).unwrap();
    let mut from = BufReader::new(listener.accept().unwrap().0);
    let messages: Vec<String> = (0..4).map(|_| counted(&mut from)).collect();
    let head = regex::Regex::new(
        r#"^<1(08|10)>1 \d{4}-\d\d-\d\dT[\d:.]+Z bastion keyward \d+ \w+ \[meta sequenceId="\d+"\] "#,
    )
    .unwrap();
    for (n, message) in messages.iter().enumerate() {
        assert!(head.is_match(message), "{message}");
        assert_eq!(json_of(message)["seq"], n as u64 + 1);
        assert!(
            !message.trim_start_matches(|c| c != '{').chars().any(super::super::text::is_command),
            "{message}"
        );
    }
    assert_eq!(json_of(&messages[0])["by"], "user-0\u{1b}\u{202e}");
    // With the head that came out, a trail that is rolled back is caught later.
    let heads = desk.dir.path().join("heads");
    std::fs::write(&heads, format!("{}\n", messages[3].split_once('\u{feff}').unwrap().1)).unwrap();
    let against = super::super::Against {
        key: desk.signer.public_key().clone(),
        heads: Some(heads.clone()),
        marks: None,
    };
    super::super::verify_with(&desk.dir.path().join("audit"), &against).unwrap();
    let empty = tempfile::tempdir().unwrap();
    drop(Trail::open(empty.path(), desk.signer.clone()).unwrap());
    assert!(super::super::verify_with(empty.path(), &against).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_dies_gets_all_it_did_not_keep_and_holds_nothing_up_meanwhile() {
    let desk = desk().await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp://{}", listener.local_addr().unwrap());
    let outlets = Outlets::open(&desk.trail, desk.syslog(&address)).unwrap();
    desk.append(1).await;
    let mut from = BufReader::new(listener.accept().unwrap().0);
    assert_eq!(json_of(&counted(&mut from))["seq"], 1);
    drop(from);
    desk.append(50).await;
    let mut seen = std::collections::BTreeSet::new();
    let mut from = BufReader::new(listener.accept().unwrap().0);
    while seen.len() < 50 || !seen.contains(&51) {
        seen.insert(json_of(&counted(&mut from))["seq"].as_u64().unwrap());
    }
    assert!((2..=51).all(|seq| seen.contains(&seq)));
    outlets.settle(51, Duration::from_secs(10)).await;
    assert_eq!(outlets.standings()[0].delivered(), 51);
    // The next start goes on after it.
    let next = Outlets::open(&desk.trail, desk.syslog(&address)).unwrap();
    desk.append(1).await;
    let mut from = BufReader::new(listener.accept().unwrap().0);
    assert_eq!(json_of(&counted(&mut from))["seq"], 52);
    drop(next);
}

#[tokio::test(flavor = "multi_thread")]
async fn udp_and_a_local_socket_get_one_event_a_datagram() {
    let desk = desk().await;
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let path = desk.dir.path().join("log");
    let unix = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    desk.append(2).await;
    let over_udp =
        Outlets::open(&desk.trail, desk.syslog(&format!("udp://{}", udp.local_addr().unwrap()))).unwrap();
    let mut buffer = vec![0; 65_536];
    for seq in 1..=2 {
        let length = udp.recv(&mut buffer).unwrap();
        assert_eq!(json_of(std::str::from_utf8(&buffer[..length]).unwrap())["seq"], seq);
    }
    over_udp.settle(2, Duration::from_secs(10)).await;
    // Another receiver begins at the beginning.
    let _over_unix = Outlets::open(&desk.trail, desk.syslog(&format!("unix:{}", path.display()))).unwrap();
    let length = unix.recv(&mut buffer).unwrap();
    assert_eq!(json_of(std::str::from_utf8(&buffer[..length]).unwrap())["seq"], 1);
}

/// Takes one request, answers with `status`; its signature header and its body.
fn request(listener: &TcpListener, status: &str) -> (String, String) {
    let mut stream = listener.accept().unwrap().0;
    let mut from = BufReader::new(stream.try_clone().unwrap());
    let (mut length, mut signature) = (0, String::new());
    loop {
        let mut line = String::new();
        from.read_line(&mut line).unwrap();
        let line = line.trim_end().to_owned();
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(": ").unwrap_or_default();
        match name.to_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap(),
            "keyward-signature" => signature = value.to_owned(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body).unwrap();
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\nLocation: http://127.0.0.1:9/\r\n\r\n"
    );
    stream.write_all(answer.as_bytes()).unwrap();
    (signature, String::from_utf8(body).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_gets_signed_batches_and_again_what_it_refused() {
    let desk = desk().await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    desk.append(2).await;
    let receivers = desk.webhook(listener.local_addr().unwrap().port());
    let outlets = Outlets::open(&desk.trail, receivers).unwrap();
    for refusal in ["503 Busy", "302 Elsewhere"] {
        request(&listener, refusal);
        assert_eq!(outlets.standings()[0].delivered(), 0);
    }
    let (signature, body) = request(&listener, "204 Taken");
    let (at, mac) = signature.strip_prefix("t=").unwrap().split_once(",v1=").unwrap();
    let at: i64 = at.parse().unwrap();
    assert_eq!(webhook::signature(b"0123456789abcdef", at, body.as_bytes()).unwrap(), mac);
    assert_ne!(webhook::signature(b"0123456789abcdef", at + 1, body.as_bytes()).unwrap(), mac);
    assert_ne!(webhook::signature(b"0123456789abcdeF", at, body.as_bytes()).unwrap(), mac);
    let events: Vec<serde_json::Value> = serde_json::from_str(&body).unwrap();
    assert_eq!(events.iter().map(|e| e["seq"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2]);
    outlets.settle(2, Duration::from_secs(10)).await;
    assert_eq!((outlets.standings()[0].delivered(), outlets.standings()[0].fault()), (2, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trail_that_was_rolled_back_is_noticed_by_what_was_sent() {
    let desk = desk().await;
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = format!("udp://{}", udp.local_addr().unwrap());
    desk.append(3).await;
    let outlets = Outlets::open(&desk.trail, desk.syslog(&address)).unwrap();
    outlets.settle(3, Duration::from_secs(10)).await;
    let cursor = std::fs::read(desk.dir.path().join("audit/outlets/syslog.json")).unwrap();
    for (events, there) in [(1, "shorter"), (5, "another")] {
        let other = desk_of(desk.signer.clone());
        other.append(events).await;
        let outlets_dir = other.dir.path().join("audit/outlets");
        std::fs::create_dir(&outlets_dir).unwrap();
        std::fs::write(outlets_dir.join("syslog.json"), &cursor).unwrap();
        let outlets = Outlets::open(&other.trail, other.syslog(&address)).unwrap();
        let fault = loop {
            if let Some(fault) = outlets.standings()[0].fault() {
                break fault;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert!(fault.contains("rolled back or rewritten"), "{there}: {fault}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_that_somebody_moved_skips_nothing_and_one_of_our_own_is_believed() {
    let desk = desk().await;
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = format!("udp://{}", udp.local_addr().unwrap());
    let file = desk.dir.path().join("audit/outlets/syslog.json");
    let mut buffer = vec![0; 65_536];
    let mut next = || {
        let length = udp.recv(&mut buffer).unwrap();
        json_of(std::str::from_utf8(&buffer[..length]).unwrap())["seq"].as_u64().unwrap()
    };
    desk.append(2).await;
    let outlets = Outlets::open(&desk.trail, desk.syslog(&address)).unwrap();
    outlets.settle(2, Duration::from_secs(10)).await;
    assert_eq!((next(), next()), (1, 2));
    let own = std::fs::read_to_string(&file).unwrap();
    desk.append(2).await;
    let (head, at) = (desk.trail.head(), desk.trail.query(&Default::default()).unwrap());
    let mut moved: serde_json::Value = serde_json::from_str(&own).unwrap();
    (moved["seq"], moved["hash"]) = (head.seq.into(), head.hash.into());
    assert_eq!(at.len(), 4);
    let mut unmarked = moved.clone();
    unmarked.as_object_mut().unwrap().remove("mark");
    for (text, from, told) in
        [(own, 3, 0), (moved.to_string(), 1, 1), (unmarked.to_string(), 1, 1), ("{".to_owned(), 1, 1)]
    {
        std::fs::write(&file, &text).unwrap();
        let outlets = Outlets::open(&desk.trail, desk.syslog(&address)).unwrap();
        assert_eq!(outlets.rewound().len(), told, "{text}");
        outlets.settle(4, Duration::from_secs(10)).await;
        assert!((from..=4).all(|seq| next() == seq), "{text}");
    }
}

#[test]
fn an_address_is_udp_tcp_tls_or_a_path() {
    for good in ["udp://log:514", "tcp://[::1]:601", "tls://log:6514", "unix:/dev/log"] {
        assert_eq!(good.parse::<SyslogAddress>().unwrap().to_string(), good);
    }
    for bad in
        ["log:514", "udp://log", "udp://:514", "tcp://log:0", "unix:dev/log", "tls://log", "udp://a/b:1"]
    {
        assert!(bad.parse::<SyslogAddress>().is_err(), "{bad}");
    }
}
