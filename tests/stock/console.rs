//! The web console, spoken to as a browser would, and as one would that means harm.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::rig::{Rig, free_port, text, wait_for};

/// What came back.
pub struct Page {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Page {
    fn cookie(&self) -> String {
        let set = self.headers.get("set-cookie").expect("a cookie");
        set.split(';').next().unwrap().to_owned()
    }
}

/// A bastion whose console has a port, with `oscar` the auditor.
pub struct Console {
    pub rig: Rig,
    pub port: u16,
}

impl Console {
    pub fn new() -> Self {
        let port = free_port();
        let rig = Rig::with_alice_and(&format!("\n[console]\nlisten = \"127.0.0.1:{port}\"\n"));
        rig.add_user_as("oscar", "auditor");
        Self { rig, port }
    }

    pub fn desk(&self, user: &str, command: &[&str]) -> Output {
        self.rig.shared("ssh", user).arg("bastion").args(command).output().unwrap()
    }

    /// A link for `user`, without its host.
    pub fn link(&self, user: &str) -> String {
        let output = self.desk(user, &["console"]);
        assert!(output.status.success(), "{}", text(output.stderr));
        let url = text(output.stdout).trim().to_owned();
        let base = format!("http://127.0.0.1:{}", self.port);
        url.strip_prefix(&base).unwrap_or_else(|| panic!("{url}")).to_owned()
    }

    /// The cookie of `user`, signed in.
    pub fn signed_in(&self, user: &str) -> String {
        let page = self.get(&self.link(user), "");
        assert_eq!((page.status, page.headers["location"].as_str()), (303, "/sessions"), "{}", page.body);
        page.cookie()
    }

    pub fn get(&self, path: &str, cookie: &str) -> Page {
        request(self.port, "GET", path, &[("Cookie", cookie)])
    }

    /// A session of alice's, ended.
    fn recorded(&self, command: &str) -> String {
        self.rig.ssh("alice", command);
        self.rig.ended_sessions().last().unwrap()["id"].as_str().unwrap().to_owned()
    }
}

fn request(port: u16, method: &str, path: &str, headers: &[(&str, &str)]) -> Page {
    sent(port, (method, path), headers, "")
}

fn sent(port: u16, (method, path): (&str, &str), headers: &[(&str, &str)], body: &str) -> Page {
    let mut stream = open(port, method, path, headers);
    // What is refused before it was read breaks the connection; the answer was given by then.
    stream.write_all(body.as_bytes()).ok();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    let all = text(all);
    let (head, body) = all.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer to {path}: {all}"));
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers: BTreeMap<String, String> = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let chunked = headers.get("transfer-encoding").is_some_and(|coding| coding == "chunked");
    Page { status, body: if chunked { joined(body) } else { body.to_owned() }, headers }
}

fn open(port: u16, method: &str, path: &str, headers: &[(&str, &str)]) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let own = headers.iter().any(|(name, _)| *name == "Host");
    let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
    if !own {
        head.push_str(&format!("Host: 127.0.0.1:{port}\r\n"));
    }
    for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
    stream
}

/// Chunks without their sizes.
fn joined(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((size, more)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        body.push_str(&more[..size]);
        rest = more.get(size + 2..).unwrap_or_default();
    }
    body
}

#[test]
fn an_auditor_signs_in_over_ssh_and_sees_what_was_recorded() {
    let console = Console::new();
    let id = console.recorded("echo on the tape");
    let link = console.link("oscar");
    let first = console.get(&link, "");
    assert_eq!((first.status, first.headers["location"].as_str()), (303, "/sessions"));
    let set = &first.headers["set-cookie"];
    assert!(set.contains("; HttpOnly; SameSite=Strict") && !set.contains("Secure"), "{set}");
    assert_eq!(console.rig.events("console_signed_in")[0]["user"], "oscar");

    let cookie = first.cookie();
    let list = console.get("/sessions?command=TAPE", &cookie);
    assert!(list.status == 200 && list.body.contains(&id) && list.body.contains("1–1 of 1"), "{}", list.body);
    let none = console.get("/sessions?command=nowhere", &cookie);
    assert!(!none.body.contains(&id) && none.body.contains("No session fits"), "{}", none.body);
    let wrong = console.get("/sessions?since=yesterday", &cookie);
    assert!(wrong.status == 400 && wrong.body.contains("is not a time"), "{}", wrong.body);

    assert!(console.rig.events("recording_viewed").is_empty(), "a list shows no recording");
    let tape = console.get(&format!("/sessions/{id}/tape"), &cookie);
    assert!(tape.body.starts_with("{\"version\":2") && tape.body.contains("on the tape"), "{}", tape.body);
    assert!(tape.body.contains("\"m\",\"$ echo on the tape\""), "commands are marked: {}", tape.body);
    let seen = console.rig.events("recording_viewed");
    assert!(seen.len() == 1 && seen[0]["by"] == "oscar" && seen[0]["session"] == id.as_str(), "{seen:?}");

    let page = console.get(&format!("/sessions/{id}"), &cookie);
    assert!(page.body.contains("echo on the tape") && page.body.contains("Ledger"), "{}", page.body);
    let verdict = console.get(&format!("/sessions/{id}/verification"), &cookie);
    assert!(
        verdict.body.contains("\"ok\":true") && verdict.body.contains("Whole and unchanged"),
        "{}",
        verdict.body
    );
    let verdict = console.get("/chain/verification", &cookie);
    assert!(verdict.body.contains("\"ok\":true"), "{}", verdict.body);
    let found = console.get("/search?pattern=on+the+tape", &cookie);
    assert!(found.body.contains(&format!("/sessions/{id}?t=")), "{}", found.body);
    for path in [format!("/sessions/{id}/transcript"), "/gaps".into(), "/chain".into(), "/search".into()] {
        assert_eq!(console.get(&path, &cookie).status, 200, "{path}");
    }
    assert_eq!(console.get("/sessions/01a208b5-93a4-7976-b442-bac7974317e7", &cookie).status, 404);

    let origin = format!("http://127.0.0.1:{}", console.port);
    let out = [("Cookie", cookie.as_str()), ("Origin", origin.as_str())];
    assert_eq!(request(console.port, "POST", "/sign-out", &out).status, 200);
    assert_eq!(console.get("/sessions", &cookie).status, 401);
}

#[test]
fn a_link_is_spent_once_and_a_guess_is_worth_nothing() {
    let console = Console::new();
    let id = console.recorded("echo on the tape");
    let link = console.link("oscar");
    assert_eq!(console.get(&link, "").status, 303);
    for dead in [
        link.as_str(),
        "/sign-in",
        "/sign-in?ticket=",
        "/sign-in?ticket=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    ] {
        let page = console.get(dead, "");
        assert_eq!(page.status, 403, "{dead}");
        assert!(
            !page.headers.contains_key("set-cookie") && page.body.contains("used before"),
            "{}",
            page.body
        );
    }
    let failed = console.rig.events("console_sign_in_failed");
    assert_eq!(failed.len(), 1, "guesses are not audited: {failed:?}");
    assert_eq!(
        (failed[0]["user"].as_str(), failed[0]["reason"].as_str()),
        (Some("oscar"), Some("the link was used before"))
    );
    for cookie in ["", "keyward=", "keyward=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "keyward=oscar"] {
        for path in ["/sessions", "/search?pattern=a", "/gaps", "/chain", "/chain/verification"] {
            assert_eq!(console.get(path, cookie).status, 401, "{cookie} {path}");
        }
        for what in ["", "/tape", "/live", "/transcript", "/verification"] {
            let page = console.get(&format!("/sessions/{id}{what}"), cookie);
            assert!(page.status == 401 && !page.body.contains("on the tape"), "{what}: {}", page.body);
        }
    }
    assert!(console.rig.events("recording_viewed").is_empty());
}

#[test]
fn who_is_no_auditor_gets_no_link_and_no_way() {
    let console = Console::new();
    console.rig.add_user_as("ada", "admin");
    for user in ["alice", "ada"] {
        let output = console.desk(user, &["console"]);
        assert_eq!(output.status.code(), Some(4), "{user}");
        assert!(output.stdout.is_empty());
        assert!(!knock(&console.rig, user).contains("HTTP"), "{user}");
    }
    let denied = console.rig.events("access_denied");
    assert!(denied.iter().filter(|e| e["instance"] == "console").count() == 2, "{denied:?}");
    assert!(knock(&console.rig, "oscar").starts_with("HTTP/1.1 401"), "an auditor gets there");
    let operator = console.rig.run(&["console"]);
    assert_eq!(operator.status.code(), Some(2));
    assert!(text(operator.stderr).contains("ssh AUDITOR@bastion console"));
}

/// What a request through `ssh -W console:80` brings.
fn knock(rig: &Rig, user: &str) -> String {
    let mut ssh = rig.shared("ssh", user);
    let ssh = ssh.args(["-W", "console:80", "bastion"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut ssh = ssh.spawn().unwrap();
    let request = "GET /sessions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let mut stdin = ssh.stdin.take().unwrap();
    stdin.write_all(request.as_bytes()).unwrap();
    let mut said = String::new();
    ssh.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    drop(stdin);
    ssh.wait().unwrap();
    said
}

/// `ssh -N -L PORT:console:80` of `user`.
fn forwarded(rig: &Rig, user: &str) -> (Child, u16) {
    let port = free_port();
    let forward = format!("127.0.0.1:{port}:console:80");
    let child = rig.shared("ssh", user).args(["-N", "-L", &forward, "bastion"]).spawn().unwrap();
    wait_for("the forward", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    (child, port)
}

#[test]
fn without_a_port_it_is_reached_through_the_auditors_own_connection() {
    let rig = Rig::with_alice();
    rig.add_user_as("oscar", "auditor");
    rig.add_user_as("olga", "auditor");
    rig.ssh("alice", "echo on the tape");
    rig.ended_sessions();
    let link = |user: &str| {
        let output = rig.shared("ssh", user).args(["bastion", "console", "--json"]).output().unwrap();
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(told["forward"], format!("ssh -N -L 8022:console:80 {user}@bastion"));
        told["url"].as_str().unwrap().strip_prefix("http://127.0.0.1:8022").unwrap().to_owned()
    };
    let (mut ssh, port) = forwarded(&rig, "oscar");
    let foreign = request(port, "GET", &link("olga"), &[]);
    assert!(foreign.status == 403 && !foreign.headers.contains_key("set-cookie"), "another auditor's link");
    let page = request(port, "GET", &link("oscar"), &[]);
    let cookie = page.cookie();
    assert!(request(port, "GET", "/sessions", &[("Cookie", &cookie)]).body.contains("alice"));
    // A cookie that leaked is of no use in another's connection.
    let (mut other, elsewhere) = forwarded(&rig, "olga");
    assert_eq!(request(elsewhere, "GET", "/sessions", &[("Cookie", &cookie)]).status, 401);
    assert_eq!(request(port, "GET", "/sessions", &[("Cookie", &cookie)]).status, 200);
    for child in [&mut ssh, &mut other] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn what_is_switched_off_says_what_to_set() {
    let rig = Rig::with_alice_and("\n[console]\nenabled = false\n");
    rig.add_user_as("oscar", "auditor");
    let output = rig.shared("ssh", "oscar").args(["bastion", "console"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(output.stderr).contains("console.enabled = true"));
    assert!(!knock(&rig, "oscar").contains("HTTP"));
}

#[test]
fn other_sites_and_other_names_are_not_heard_and_every_answer_is_sealed() {
    let console = Console::new();
    let id = console.recorded("true");
    let cookie = console.signed_in("oscar");
    let with = |headers: &[(&str, &str)]| {
        let all = [&[("Cookie", cookie.as_str())], headers].concat();
        request(console.port, "GET", "/sessions", &all).status
    };
    assert_eq!(with(&[]), 200);
    for host in ["evil.example", "127.0.0.1.evil.example", "console", "evil.example:80"] {
        assert_eq!(with(&[("Host", host)]), 403, "{host}");
    }
    for site in ["cross-site", "same-site"] {
        assert_eq!(with(&[("Sec-Fetch-Site", site)]), 403, "{site}");
    }
    assert_eq!(with(&[("Sec-Fetch-Site", "same-origin")]), 200);
    let post = |origin: &str| {
        let headers = [("Cookie", cookie.as_str()), ("Origin", origin)];
        request(console.port, "POST", "/sign-out", &headers).status
    };
    assert_eq!((post("http://evil.example"), post("http://127.0.0.1:1"), post("null")), (403, 403, 403));
    assert_eq!(with(&[]), 200, "still signed in");

    let session = format!("/sessions/{id}");
    for path in [
        "/",
        "/sessions",
        "/nowhere",
        "/sign-in",
        "/assets/console.css",
        "/assets/asciinema-player.min.js",
        &session,
    ] {
        for cookie in [cookie.as_str(), ""] {
            let page = console.get(path, cookie);
            let policy = &page.headers["content-security-policy"];
            assert!(
                policy.starts_with("default-src 'none'; ") && policy.contains("frame-ancestors 'none'"),
                "{path}"
            );
            assert!(
                !policy.contains("unsafe-inline") && !policy.contains("'unsafe-eval'"),
                "{path}: {policy}"
            );
            assert_eq!(policy.contains("wasm-unsafe-eval"), path == session && !cookie.is_empty(), "{path}");
            for (name, value) in [
                ("x-content-type-options", "nosniff"),
                ("x-frame-options", "DENY"),
                ("referrer-policy", "same-origin"),
                ("cross-origin-opener-policy", "same-origin"),
                ("cross-origin-resource-policy", "same-origin"),
            ] {
                assert_eq!(page.headers[name], value, "{path}");
            }
            assert!(
                !page.body.contains("<script>")
                    && !page.body.contains(" style=")
                    && !page.body.contains(" onclick")
            );
        }
    }
}

#[test]
fn what_an_instance_or_a_user_sent_is_shown_as_text() {
    let console = Console::new();
    let evil = "echo '<script>alert(1)</script>\u{202e}'; printf '\"><img src=x onerror=alert(2)>\\033]0;title\\a\\n'";
    let id = console.recorded(evil);
    let cookie = console.signed_in("oscar");
    for path in [
        "/sessions".to_owned(),
        "/sessions?command=%3Cscript%3E&user=%22%3E%3Cscript%3Ealert(3)%3C/script%3E".into(),
        "/sessions?command=%3Cscript%3E".into(),
        format!("/sessions/{id}"),
        format!("/sessions/{id}/transcript"),
        "/search?pattern=alert".into(),
        "/search?pattern=%22%3E%3Cscript%3Ealert(4)%3C/script%3E".into(),
        "/search?regex=1&pattern=(%3Cscript%3E".into(),
        "/gaps?since=%3Cscript%3E".into(),
        "/sessions/%3Cscript%3Ealert(5)%3C%2Fscript%3E".into(),
    ] {
        let page = console.get(&path, &cookie);
        for obeyed in ["<script>", "<img src=x", "\u{202e}", "\u{1b}", "\u{7}"] {
            assert!(!page.body.contains(obeyed), "{path}: {obeyed:?}\n{}", page.body);
        }
    }
    let shown = console.get(&format!("/sessions/{id}/transcript"), &cookie).body;
    assert!(shown.contains("&#60;script&#62;alert(1)") && shown.contains("\\u{202e}"), "{shown}");
    let tape = console.get(&format!("/sessions/{id}/tape"), &cookie);
    assert!(tape.headers["content-type"].starts_with("application/x-asciicast"));
    let mark = tape.body.lines().find(|line| line.contains("\"m\"")).unwrap();
    assert!(mark.contains("\\\\u{202e}") && !mark.contains('\u{202e}'), "{mark}");
}

#[test]
fn a_browser_is_out_as_soon_as_the_right_is() {
    let console = Console::new();
    let rig = &console.rig;
    rig.ok(&[
        "access",
        "allow",
        "--user",
        "alice",
        "--instance",
        "db-1",
        "--login",
        &rig.login,
        "--can",
        "shell",
    ]);
    let mut alice = rig.client("ssh", "alice");
    alice.args(["-tt", "db-1", "echo up; read line; echo bye"]);
    alice.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut alice = alice.spawn().unwrap();
    let mut said = BufReader::new(alice.stdout.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    let id = rig.json(&["sessions", "list", "--live"])[0]["id"].as_str().unwrap().to_owned();

    let cookie = console.signed_in("oscar");
    let watching = open(console.port, "GET", &format!("/sessions/{id}/live"), &[("Cookie", &cookie)]);
    let mut events = BufReader::new(watching).lines().map_while(Result::ok);
    assert!(events.any(|line| line.starts_with("data: [") && line.contains("up")), "the screen as it stands");
    wait_for("the look", || !rig.events("recording_viewed").is_empty());
    // She is told that she is watched.
    let mut told = BufReader::new(alice.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(told.any(|line| line.contains("An auditor is watching")));
    let since = Instant::now();
    rig.ok(&["users", "suspend", "oscar", "--reason", "left"]);
    assert!(events.any(|line| line.contains("event: refused")), "the live view ends");
    assert!(since.elapsed() < Duration::from_secs(10));
    let page = console.get("/sessions", &cookie);
    assert!(matches!(page.status, 401 | 403) && !page.body.contains(&id));
    rig.ok(&["users", "resume", "oscar"]);
    assert_eq!(console.get("/sessions", &cookie).status, 401, "it does not come back by itself");
    alice.stdin.take().unwrap().write_all(b"x\n").unwrap();
    alice.wait().unwrap();

    let cookie = console.signed_in("oscar");
    assert_eq!(console.get("/sessions", &cookie).status, 200);
    rig.ok(&["access", "deny-all", "--reason", "breach"]);
    assert_eq!(console.get("/sessions", &cookie).status, 403);
    rig.ok(&["access", "deny-all", "--end"]);
    assert_eq!(console.get("/sessions", &cookie).status, 401);

    let cookie = console.signed_in("oscar");
    let key = rig.json(&["ssh-keys", "list", "--user", "oscar"])[0]["id"].as_str().unwrap().to_owned();
    let link = console.link("oscar");
    rig.ok(&["ssh-keys", "revoke", &key, "--reason", "lost"]);
    assert_eq!(console.get("/sessions", &cookie).status, 403);
    let late = console.get(&link, "");
    assert!(late.status == 403 && !late.headers.contains_key("set-cookie"), "a link dies with its key too");
    let out = rig.events("console_signed_out");
    assert_eq!(out.len(), 3, "{out:?}");
    assert!(out.iter().all(|event| event["user"] == "oscar"));
}

#[test]
fn a_live_session_is_ended_from_its_page_by_whoever_may_do_so_over_ssh() {
    let console = Console::new();
    let rig = &console.rig;
    rig.add_user_as("olga", "auditor,admin");
    let mut alice = rig.client("ssh", "alice");
    alice.args(["-tt", "db-1", "echo up; read line"]);
    alice.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut alice = alice.spawn().unwrap();
    let mut said = BufReader::new(alice.stdout.take().unwrap());
    said.read_line(&mut String::new()).unwrap();
    let id = rig.json(&["sessions", "list", "--live"])[0]["id"].as_str().unwrap().to_owned();
    let (page, at) = (format!("/sessions/{id}"), format!("/sessions/{id}/kill"));
    let origin = format!("http://127.0.0.1:{}", console.port);
    let (oscar, olga) = (console.signed_in("oscar"), console.signed_in("olga"));
    let post = |cookie: &str, origin: &str, form: &str| {
        let length = form.len().to_string();
        let kind = "application/x-www-form-urlencoded";
        let headers =
            [("Cookie", cookie), ("Origin", origin), ("Content-Type", kind), ("Content-Length", &length)];
        sent(console.port, ("POST", &at), &headers, form)
    };
    let form = "reason=wrong+host+%3Cb%3E";

    assert!(console.get(&page, &olga).body.contains(&at), "who may is offered it");
    assert!(!console.get(&page, &oscar).body.contains(&at), "who may not is not");
    let denied = post(&oscar, &origin, form);
    assert!(denied.status == 403 && denied.body.contains("this is for admins"), "{}", denied.body);
    assert_eq!(console.desk("oscar", &["sessions", "kill", &id]).status.code(), Some(4), "as over SSH");
    // Not by a link, not from another site, not without a cookie, not without a reason.
    assert_eq!(console.get(&at, &olga).status, 405);
    for other in ["http://evil.example", "null", ""] {
        assert_eq!(post(&olga, other, form).status, 403, "{other}");
    }
    assert_eq!(post("", &origin, form).status, 401);
    let long = format!("reason={}", "x".repeat(501));
    for (bad, status) in [("", 400), ("reason=+", 400), (long.as_str(), 400)] {
        assert_eq!(post(&olga, &origin, bad).status, status, "{bad}");
    }
    assert_eq!(post(&olga, &origin, &format!("reason={}", "x".repeat(20_000))).status, 413);
    assert!(rig.events("session_killed").is_empty());
    assert_eq!(rig.json(&["sessions", "show", &id])["status"], "live");

    let ended = post(&olga, &origin, form);
    assert_eq!((ended.status, ended.headers["location"].as_str()), (303, page.as_str()), "{}", ended.body);
    let killed = rig.events("session_killed");
    assert_eq!((killed[0]["by"].as_str(), killed[0]["session"].as_str()), (Some("olga"), Some(id.as_str())));
    assert!(killed[0]["reason"].as_str().unwrap().contains("wrong host <b>"), "{killed:?}");
    let shown = console.get(&page, &olga).body;
    assert!(shown.contains("killed") && shown.contains("wrong host &#60;b&#62;"), "{shown}");
    assert!(!shown.contains(&at), "there is nothing left to end");
    assert_eq!(post(&olga, &origin, form).status, 404);
    let mut told = String::new();
    alice.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    assert!(told.contains("wrong host"), "{told}");
    alice.wait().unwrap();
}

/// Summaries as so many sessions would have left them, one a minute until now.
fn many(rig: &Rig, count: u64) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64;
    for n in 0..count {
        let millis = now - (count - n) * 60_000;
        let id = format!("{:08x}-{:04x}-7000-8000-{n:012x}", millis >> 16, millis & 0xffff);
        let at = |millis: u64| jiff::Timestamp::from_millisecond(millis as i64).unwrap().to_string();
        let summary = serde_json::json!({
            "id": id, "user": format!("user-{}", n % 97), "login": "ubuntu", "instance": format!("db-{}", n % 31),
            "source_ip": format!("10.0.{}.{}", n % 250, n % 240), "key": "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
            "started_at": at(millis), "ended_at": at(millis + 30_000), "status": "closed", "reason": null, "bytes_in": 10,
            "bytes_out": 5000, "digest": "0".repeat(64), "channels": [{
                "channel": 1, "kind": "exec", "terminal": false, "command": format!("systemctl restart app-{n}"), "exit_status": 0,
                "relayed_bytes": 5010, "captured_bytes": 5010, "capture": "full", "bytes_in": 10, "bytes_out": 5000,
            }],
        });
        std::fs::write(rig.path(&format!("bastion/state/tapes/{id}.json")), summary.to_string()).unwrap();
        std::fs::write(rig.path(&format!("bastion/state/tapes/{id}.tape")), "").unwrap();
        std::fs::write(rig.path(&format!("bastion/state/tapes/{id}.key")), "").unwrap();
    }
}

#[test]
#[ignore = "makes 300,000 files: run it for the figure"]
fn a_list_of_a_hundred_thousand_sessions_opens_at_once() {
    let console = Console::new();
    many(&console.rig, 100_000);
    // What others do to the directory is seen within half a minute.
    std::thread::sleep(Duration::from_secs(31));
    let cookie = console.signed_in("oscar");
    for path in ["/sessions", "/sessions?page=1000", "/sessions?user=user-7", "/sessions?command=app-99999"] {
        let mut took = Vec::new();
        for _ in 0..5 {
            let since = Instant::now();
            let page = console.get(path, &cookie);
            took.push(since.elapsed().as_millis());
            assert!(page.status == 200 && page.body.contains("user-"), "{}", page.body);
        }
        eprintln!("{path}: {took:?} ms");
    }
}
