//! What goes through a session: every message of every channel, in order, whole, and counted to the byte.

use std::fs;
use std::process::{Child, Command, Stdio};

use crate::rig::{Rig, text, wait_for, write};

/// Runs `line` in a terminal of 80 columns and 24 rows; returns what the terminal showed.
fn in_terminal(rig: &Rig, user: &str, line: &str) -> (i32, String) {
    let mut script = Command::new("script");
    let line = format!("stty rows 24 cols 80; {line}");
    rig.asking(script.args(["-qec", &line, "/dev/null"]).stdin(Stdio::null()), user);
    let output = script.output().unwrap();
    (output.status.code().unwrap(), text(output.stdout))
}

#[test]
fn a_terminal_has_its_size_and_hears_of_a_change() {
    let rig = Rig::with_alice();
    let config = rig.config("alice", "");
    // The instance says its size twice: at the start, and when the window changes.
    let there = "trap 'stty size; exit 3' WINCH; stty size; tty; while :; do sleep 0.1; done";
    let tty = rig.path("tty");
    let line = format!(
        "tty > {tty}; TERM=vt220 exec ssh -F {config} -tt db-1 \"{there}\"",
        tty = tty.display(),
        config = config.display(),
    );
    let changed = std::thread::scope(|scope| {
        let shown = scope.spawn(|| in_terminal(&rig, "alice", &line));
        wait_for("output on the tape", || {
            rig.json(&["sessions", "list", "--live"])[0]["bytes_out"].as_u64() > Some(5)
        });
        let tty = fs::read_to_string(&tty).unwrap();
        let stty = ["-F", tty.trim(), "rows", "50", "cols", "132"];
        assert!(Command::new("stty").args(stty).status().unwrap().success());
        shown.join().unwrap()
    });
    let (code, shown) = changed;
    assert_eq!(code, 3, "{shown}");
    assert!(shown.contains("24 80") && shown.contains("50 132") && shown.contains("/dev/pts/"), "{shown}");
    let session = &rig.ended_sessions()[0];
    assert_eq!(session["channels"][0]["terminal"], true);
    assert_eq!(session["channels"][0]["exit_status"], 3);
}

#[test]
fn without_a_terminal_there_is_none() {
    let rig = Rig::with_alice();
    assert_eq!(text(rig.ssh("alice", "tty; echo \"[$SSH_TTY]\"").stdout), "not a tty\n[]\n");
}

#[test]
fn an_interactive_shell_takes_lines_and_ctrl_c_and_gives_its_status() {
    let rig = Rig::with_alice();
    let mut shell = rig.client("ssh", "alice");
    let mut shell = shell.args(["-tt", "db-1"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // 0x03 is Ctrl-C: the line discipline on the instance makes a signal of it.
    let mut stdin = shell.stdin.take().unwrap();
    let mut typed = |keys: &str| std::io::Write::write_all(&mut stdin, keys.as_bytes()).unwrap();
    let ready = rig.path("ready");
    let trap = format!(
        "trap 'echo caught-$((40+2)); exit' INT; touch {}; while :; do sleep 0.1; done",
        ready.display()
    );
    fs::write(rig.path("trap"), trap).unwrap();
    typed(&format!("echo up-$((1+1)); sh {}\n", rig.path("trap").display()));
    wait_for("the command to run", || ready.exists());
    typed("\u{3}");
    typed("echo after-$((2+2)); exit 5\n");
    drop(stdin);
    let output = shell.wait_with_output().unwrap();
    let shown = text(output.stdout);
    assert_eq!(output.status.code(), Some(5), "{shown}");
    for word in ["up-2", "caught-42", "after-4"] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
    let id = rig.ended_sessions()[0]["id"].as_str().unwrap().to_owned();
    assert!(rig.ok(&["sessions", "play", &id, "--speed", "1000"]).contains("caught-42"));
}

#[test]
fn a_signal_request_reaches_the_instance() {
    let rig = Rig::with_alice();
    // The stock client sends no signal requests (RFC 4254 §6.9); paramiko can be made to.
    let out = rig.paramiko(
        "alice",
        r#"
chan = inner().open_session()
chan.exec_command('trap "echo got usr1; exit 9" USR1; echo ready; for i in $(seq 30); do sleep 0.1; done')
assert chan.recv(100) == b'ready\n'
m = paramiko.Message()
m.add_byte(b'\x62'); m.add_int(chan.remote_chanid); m.add_string('signal'); m.add_boolean(False); m.add_string('USR1')
chan.transport._send_user_message(m)
print(chan.recv(100).decode().strip(), chan.recv_exit_status())
"#,
    );
    // sshd carries it out only where it separates privileges, which it does not for root; then it says so.
    let log = fs::read_to_string(rig.path("sshd.log")).unwrap();
    assert!(
        out == "got usr1 9\n" || log.contains("session signalling requires privilege separation"),
        "{out}"
    );
}

#[test]
fn a_command_that_a_signal_ended_comes_back_as_such() {
    let rig = Rig::with_alice();
    let output = rig.ssh("alice", "echo before; kill -TERM $$");
    assert_eq!(output.status.code(), Some(255), "what ssh says of a signal");
    assert_eq!(text(output.stdout), "before\n");
    let sessions = rig.ended_sessions();
    let killed = sessions.iter().find(|s| s["channels"][0]["exit_signal"] == "TERM").expect("an exit signal");
    assert!(killed["channels"][0]["exit_status"].is_null());
}

#[test]
fn an_exit_status_arrives_though_all_output_ended_long_before() {
    let rig = Rig::with_alice();
    // What `ssh -n db-1 'make > log 2>&1'` is: stdin, stdout and stderr end, and the status comes later.
    let output = rig.ssh("alice", "exec >&- 2>&-; sleep 1; exit 7");
    assert_eq!(output.status.code(), Some(7), "{}", text(output.stderr));
    assert_eq!(rig.ended_sessions()[0]["channels"][0]["exit_status"], 7);
}

#[test]
fn input_ends_before_output_does() {
    let rig = Rig::with_alice();
    let content = write(&rig.path("in"), 70_001);
    let mut ssh = rig.client("ssh", "alice");
    ssh.args(["db-1", "cat; sleep 0.3; echo done"]).stdin(fs::File::open(rig.path("in")).unwrap());
    let output = ssh.output().unwrap();
    assert_eq!(output.stdout, [&content[..], b"done\n"].concat());
}

#[test]
fn output_and_error_output_stay_apart_and_the_ledger_counts_every_byte() {
    let rig = Rig::with_alice();
    let input = write(&rig.path("in"), 12_345);
    let mut ssh = rig.client("ssh", "alice");
    ssh.args([
        "db-1",
        "wc -c; head -c 200000 /dev/zero | tr '\\0' o; head -c 100000 /dev/zero | tr '\\0' e >&2",
    ]);
    let output = ssh.stdin(fs::File::open(rig.path("in")).unwrap()).output().unwrap();
    let counted = format!("{}\n", input.len());
    assert!(output.stdout == [counted.as_bytes(), &[b'o'; 200_000]].concat(), "{}", output.stdout.len());
    assert!(output.stderr == [b'e'; 100_000], "{}", output.stderr.len());
    let session = &rig.ended_sessions()[0];
    let (from_user, to_user) = (12_345, 300_000 + counted.len() as u64);
    assert_eq!(session["bytes_in"], from_user);
    assert_eq!(session["bytes_out"], to_user);
    let channel = &session["channels"][0];
    assert_eq!(channel["relayed_bytes"], from_user + to_user);
    assert_eq!(channel["captured_bytes"], from_user + to_user);
    assert_eq!(channel["capture"], "full");
    let id = session["id"].as_str().unwrap();
    let shown = rig.json(&["sessions", "show", id]);
    assert_eq!(&shown["channels"][0], channel, "`show` and `list` say the same");
}

#[test]
fn what_is_not_kept_is_hashed_and_named() {
    let rig = Rig::with_alice();
    let sum = |bytes: &[u8], program| {
        fs::write(rig.path("out"), bytes).unwrap();
        let sum = Command::new(program).arg(rig.path("out")).output().unwrap();
        text(sum.stdout).split(' ').next().unwrap().to_owned()
    };
    let output = rig.ssh("alice", "yes keyward | head -c 20000000");
    assert_eq!(output.stdout.len(), 20_000_000);
    let channel = &rig.ended_sessions()[0]["channels"][0];
    assert_eq!(channel["bytes_out"], 20_000_000);
    assert_eq!(channel["relayed_bytes"], 20_000_000);
    let kept = channel["captured_bytes"].as_u64().unwrap();
    assert!(kept > 16_000_000 && kept <= 16 << 20, "{kept}");
    assert_eq!(channel["capture"], "digest");
    assert!(channel["reason"].as_str().unwrap().contains("16777216"), "{channel}");
    assert_eq!(channel["digest_out"], format!("blake3:{}", sum(&output.stdout, "b3sum")));
    // Where a rule asks for SHA-256.
    let strict = Rig::with_alice_and("capture_limit_bytes = 1000\ndigest = \"sha256\"\n");
    let output = strict.ssh("alice", "seq 10000");
    let channel = &strict.ended_sessions()[0]["channels"][0];
    assert_eq!(channel["digest_out"], format!("sha256:{}", sum(&output.stdout, "sha256sum")));
}

#[test]
fn the_environment_that_the_instance_accepts_arrives_and_no_other() {
    let rig = Rig::with_alice();
    let mut ssh = rig.client("ssh", "alice");
    ssh.env("KW_WORD", "a b\"c").env("OTHER", "x").args(["-o", "SendEnv=KW_* OTHER"]);
    let output = ssh.args(["db-1", "echo \"$KW_WORD|$OTHER|\""]).output().unwrap();
    assert_eq!(text(output.stdout), "a b\"c||\n");
}

#[test]
fn x11_is_refused_and_the_command_runs_all_the_same() {
    let rig = Rig::with_alice();
    let mut ssh = rig.client("ssh", "alice");
    let output = ssh.env("DISPLAY", ":0").args(["-X", "db-1", "echo \"[$DISPLAY]\""]).output().unwrap();
    assert_eq!(text(output.stdout), "[]\n");
    assert!(text(output.stderr).contains("X11 forwarding request failed"), "the client says so");
}

#[test]
fn sftp_runs_a_batch() {
    let rig = Rig::with_alice();
    let content = write(&rig.path("up"), 1_500_000);
    let dir = rig.dir.path().display().to_string();
    fs::write(
        rig.path("batch"),
        format!("mkdir {dir}/there\nput {dir}/up {dir}/there/file\nget {dir}/there/file {dir}/down\n\
                 rename {dir}/there/file {dir}/there/other\nls {dir}/there\nrm {dir}/there/other\nrmdir {dir}/there\n"),
    )
    .unwrap();
    let mut sftp = rig.client("sftp", "alice");
    let output = sftp.arg("-b").arg(rig.path("batch")).arg("db-1").output().unwrap();
    assert!(output.status.success(), "{}", text(output.stderr));
    assert!(text(output.stdout).contains("there/other"));
    assert!(fs::read(rig.path("down")).unwrap() == content);
    assert!(!rig.path("there").exists());
    let channel = &rig.ended_sessions()[0]["channels"][0];
    assert_eq!(channel["kind"], "sftp");
    assert!(
        channel["bytes_in"].as_u64() > Some(1_500_000) && channel["bytes_out"].as_u64() > Some(1_500_000)
    );
}

#[test]
fn rsync_goes_both_ways() {
    let rig = Rig::with_alice();
    fs::create_dir_all(rig.path("src/deep/er")).unwrap();
    let (one, two) = (write(&rig.path("src/one"), 400_000), write(&rig.path("src/deep/er/two"), 7));
    let shell = format!("ssh -F {}", rig.config("alice", &rig.master("bastion")).display());
    let sync = |from: String, to: String| {
        let mut rsync = Command::new("rsync");
        rig.asking(rsync.args(["-a", "--delete", "-e", &shell, &from, &to]), "alice");
        let output = rsync.output().unwrap();
        assert!(output.status.success(), "{}", text(output.stderr));
    };
    let dir = rig.dir.path().display().to_string();
    sync(format!("{dir}/src/"), format!("db-1:{dir}/there/"));
    sync(format!("db-1:{dir}/there/"), format!("{dir}/back/"));
    assert!(fs::read(rig.path("back/one")).unwrap() == one);
    assert!(fs::read(rig.path("back/deep/er/two")).unwrap() == two);
}

#[test]
fn git_clones_and_pushes() {
    let rig = Rig::with_alice();
    let shell = format!("ssh -F {}", rig.config("alice", &rig.master("bastion")).display());
    let git = |args: &[&str]| {
        let mut git = Command::new("git");
        git.args([
            "-c",
            "user.name=alice",
            "-c",
            "user.email=alice@example.org",
            "-c",
            "init.defaultBranch=main",
        ]);
        git.args(args).env("GIT_SSH_COMMAND", &shell).env("HOME", rig.dir.path());
        rig.asking(&mut git, "alice");
        let output = git.output().unwrap();
        assert!(output.status.success(), "git {args:?}: {}", text(output.stderr));
        text(output.stdout)
    };
    let dir = rig.dir.path().display().to_string();
    let (far, near) = (format!("{dir}/far.git"), format!("{dir}/near"));
    git(&["init", "-q", "--bare", &far]);
    git(&["clone", "-q", &format!("db-1:{far}"), &near]);
    write(&rig.path("near/file"), 300_000);
    git(&["-C", &near, "add", "file"]);
    git(&["-C", &near, "commit", "-q", "-m", "a commit"]);
    git(&["-C", &near, "push", "-q", "origin", "HEAD:main"]);
    git(&["clone", "-q", "-b", "main", &format!("db-1:{far}"), &format!("{dir}/again")]);
    assert_eq!(git(&["--git-dir", &far, "log", "--format=%s", "main"]), "a commit\n");
    assert!(fs::read(rig.path("again/file")).unwrap() == fs::read(rig.path("near/file")).unwrap());
    let commands: Vec<_> = rig.ended_sessions().iter().map(|s| s["channels"][0]["command"].clone()).collect();
    assert!(
        commands.iter().any(|c| c.as_str().is_some_and(|c| c.starts_with("git-receive-pack"))),
        "{commands:?}"
    );
}

#[test]
fn one_code_serves_many_connections() {
    let rig = Rig::with_alice();
    for number in 0..5 {
        let output = rig.shared("ssh", "alice").args(["db-1", &format!("echo {number}")]).output().unwrap();
        assert_eq!(text(output.stdout), format!("{number}\n"), "{}", text(output.stderr));
    }
    write(&rig.path("up"), 1000);
    let there = rig.path("there");
    let mut scp = rig.shared("scp", "alice");
    assert!(scp.arg(rig.path("up")).arg(format!("db-1:{}", there.display())).status().unwrap().success());
    assert_eq!(rig.ended_sessions().len(), 6);
    assert_eq!(fs::read_to_string(rig.path("count_alice")).unwrap().trim(), "1", "codes asked for");
}

#[test]
fn ssh_w_is_a_jump_too() {
    let rig = Rig::with_alice();
    let proxy = format!("ProxyCommand=ssh -F {} -W [%h]:%p bastion", rig.config("alice", "").display());
    let output = rig.client("ssh", "alice").args(["-o", &proxy, "db-1", "echo through"]).output().unwrap();
    assert_eq!(text(output.stdout), "through\n", "{}", text(output.stderr));
    assert_eq!(rig.ended_sessions().len(), 1);
}

#[test]
fn two_hundred_quick_commands_lose_nothing() {
    let rig = Rig::with_alice();
    let shared = format!("{}{}", rig.master("bastion"), rig.master("db-1"));
    let config = rig.config("alice", &shared);
    let ssh = || {
        let mut ssh = Command::new("ssh");
        rig.asking(ssh.arg("-F").arg(&config).arg("db-1").stdin(Stdio::null()), "alice");
        ssh
    };
    assert!(ssh().arg("true").status().unwrap().success());
    let run = |number: u32| {
        let command = format!("echo out {number}; echo err {number} >&2; exit {}", number % 250);
        let output = ssh().arg(command).output().unwrap();
        assert_eq!(text(output.stdout), format!("out {number}\n"));
        assert_eq!(text(output.stderr), format!("err {number}\n"));
        assert_eq!(output.status.code(), Some((number % 250) as i32));
    };
    std::thread::scope(|scope| {
        for part in 0..4 {
            scope.spawn(move || (0..50).for_each(|n| run(part * 50 + n)));
        }
    });
    let live = rig.json(&["sessions", "list"]);
    let [session] = live.as_array().unwrap().as_slice() else { panic!("{live}") };
    let channels = session["channels"].as_array().unwrap();
    assert_eq!(channels.len(), 201);
    for channel in &channels[1..] {
        let command = channel["command"].as_str().unwrap();
        let number: u64 = command.split(|c: char| !c.is_ascii_digit()).find_map(|w| w.parse().ok()).unwrap();
        assert_eq!(channel["exit_status"], number % 250, "{channel}");
        assert_eq!(channel["bytes_out"], 2 * format!("out {number}\n").len(), "{channel}");
    }
}

#[test]
fn many_channels_at_once_are_each_whole() {
    let rig = Rig::with_alice();
    let config = rig.config("alice", &rig.master("bastion db-1"));
    let content = write(&rig.path("in"), 600_000);
    let ssh = |args: &[&str]| {
        let mut ssh = Command::new("ssh");
        rig.asking(ssh.arg("-F").arg(&config).arg("db-1").args(args), "alice");
        ssh
    };
    assert!(ssh(&["true"]).stdin(Stdio::null()).status().unwrap().success());
    let running: Vec<Child> = (0..16)
        .map(|_| {
            let input = fs::File::open(rig.path("in")).unwrap();
            ssh(&["cat"]).stdin(input).stdout(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    std::thread::scope(|scope| {
        for child in running {
            let content = &content;
            scope.spawn(move || assert!(child.wait_with_output().unwrap().stdout == *content));
        }
    });
}

#[test]
fn every_request_has_its_answer_in_order_known_or_not() {
    let rig = Rig::with_alice();
    let out = rig.paramiko(
        "alice",
        r#"
def tap(t):
    said = []; read = t.packetizer.read_message
    def reads():
        kind, m = read()
        if kind in (3, 81, 82, 99, 100): said.append(kind)
        return kind, m
    t.packetizer.read_message = reads
    return said
def ask(t, chan, name, *parts):
    m = paramiko.Message(); m.add_byte(b'\x62'); m.add_int(chan.remote_chanid); m.add_string(name); m.add_boolean(True)
    for p in parts: m.add_int(p) if isinstance(p, int) else m.add_string(p)
    t._send_user_message(m)
def ask_all(t, name):
    m = paramiko.Message(); m.add_byte(b'\x50'); m.add_string(name); m.add_boolean(True); t._send_user_message(m)
def unknown(t, number):
    m = paramiko.Message(); m.add_byte(bytes([number])); m.add_string('x'); t._send_user_message(m)
def wait(said, count):
    end = time.time() + 20
    while len(said) < count:
        if time.time() > end: break
        time.sleep(0.02)
    return said
t = inner(); said = tap(t); chan = t.open_session()
ask(t, chan, 'break', 500)                       # no terminal yet: 100
ask(t, chan, 'nonsense@example.com', 'x')        # 100
ask(t, chan, 'env', 'KW_A', 'b')                 # 99
ask_all(t, 'nonsense@example.com')               # 82
ask(t, chan, 'pty-req', 'vt220', 80, 24, 0, 0, '')  # 99
unknown(t, 150)                                  # 3
ask(t, chan, 'break', 500)                       # 99
ask(t, chan, 'window-change', 81, 25, 0, 0)       # 99
ask(t, chan, 'shell')                            # 99
ask(t, chan, 'signal', 'USR2')                   # 99
ask(t, chan, 'xon-xoff', 1)                      # 100
ask(t, chan, 'break', 0)                         # 99
print('inner', wait(said, 12))
desk = tap(OUTER[-1]); chan = OUTER[-1].open_session()
ask_all(OUTER[-1], 'tcpip-forward@example.com')
ask(OUTER[-1], chan, 'break', 500)
ask(OUTER[-1], chan, 'auth-agent-req@openssh.com')
ask(OUTER[-1], chan, 'signal', 'INT')
unknown(OUTER[-1], 199)
ask(OUTER[-1], chan, 'env', 'A', 'b')
print('outer', wait(desk, 6))
"#,
    );
    let expected =
        "inner [100, 100, 99, 82, 99, 3, 99, 99, 99, 99, 100, 99]\nouter [82, 100, 100, 100, 3, 100]\n";
    assert_eq!(out, expected);
}

#[test]
fn a_break_reaches_the_terminal_there() {
    let mut rig = Rig::with_alice();
    let config = fs::read_to_string(rig.path("sshd_config")).unwrap().replace("VERBOSE", "DEBUG1");
    fs::write(rig.path("sshd_config"), config).unwrap();
    rig.restart_sshd();
    let mut ssh = rig.client("ssh", "alice");
    ssh.args(["-tt", "db-1", "echo ready; read line; read line"]);
    let mut ssh = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // What the stock client sends for ~B (RFC 4335).
    let mut stdin = ssh.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, b"\n~B").unwrap();
    let told = || fs::read_to_string(rig.path("sshd.log")).unwrap().contains("req break");
    wait_for("the break to arrive", told);
    std::io::Write::write_all(&mut stdin, b"\n").unwrap();
    drop(stdin);
    let output = ssh.wait_with_output().unwrap();
    assert!(!text(output.stderr).contains("BREAK request failed"));
}
