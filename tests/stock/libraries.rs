//! Libraries that other people's programs speak SSH with, each with key and code: libssh2 (curl, git libraries, PHP) and ssh2
//! (Node). A command, a file both ways, and the neighbour that is denied. docs/clients.md says what a person types.

use std::fs;
use std::process::{Command, Output, Stdio};

use crate::rig::{Rig, free_port, text, wait_for, write};

fn run(program: &str, args: &[&str], rig: &Rig) -> Output {
    let mut command = Command::new("timeout");
    command.args(["60", program]).args(args).current_dir(rig.dir.path()).stdin(Stdio::null());
    command.env("HOME", rig.dir.path()).output().unwrap()
}

fn known(rig: &Rig, name: &str) -> String {
    let key = fs::read_to_string(rig.path("bastion/host_key.pub")).unwrap();
    let key = key.splitn(3, ' ').take(2).collect::<Vec<_>>().join(" ");
    format!("{name} {}\n", key.trim())
}

#[test]
fn libssh2_logs_in_with_key_and_code_and_jumps() {
    let rig = Rig::with_alice();
    let content = write(&rig.path("here"), 300_000);
    fs::write(rig.path("client.c"), LIBSSH2).unwrap();
    let built = run("cc", &["client.c", "-o", "client", "-lssh2"], &rig);
    assert!(built.status.success(), "{}", text(built.stderr));
    let port = rig.port.to_string();
    let (there, login) = (rig.path("there"), rig.login.as_str());
    let client =
        |to: &str, code: &str| run("./client", &[&port, to, login, there.to_str().unwrap(), code], &rig);
    let output = client("db-1", "./code_alice");
    assert_eq!(output.status.code(), Some(7), "{}", text(output.stderr));
    assert_eq!(text(output.stdout), "out\n");
    assert!(fs::read(rig.path("back")).unwrap() == content && fs::read(&there).unwrap() == content);
    let output = client("db-9", "./code_alice");
    assert_eq!((output.status.code(), text(output.stdout).as_str()), (Some(93), ""), "no rule");
    let output = client("db-1", "./wrong_code");
    assert_eq!((output.status.code(), text(output.stdout).as_str()), (Some(95), ""), "no code");
}

#[test]
fn curl_copies_over_a_local_forward() {
    let rig = Rig::with_alice();
    let content = write(&rig.path("here"), 300_000);
    fs::create_dir_all(rig.path(".ssh")).unwrap();
    let (allowed, denied) = (free_port(), free_port());
    fs::write(rig.path(".ssh/known_hosts"), known(&rig, "127.0.0.1")).unwrap();
    let (one, other) = (format!("127.0.0.1:{allowed}:db-1:22"), format!("127.0.0.1:{denied}:db-9:22"));
    let _ssh = crate::forward::background(&rig, &["-L", &one, "-L", &other, "bastion"], allowed);
    wait_for("the other forward", || std::net::TcpStream::connect(("127.0.0.1", denied)).is_ok());
    let there = rig.path("there");
    let curl = |port: u16, args: &[&str]| {
        let user = format!("{}:", rig.login);
        let all = [&["-s", "-S", "--user", &user, "--key", "id_alice", "--pubkey", "id_alice.pub"][..], args];
        run(
            "curl",
            &[&all.concat()[..], &[&format!("sftp://127.0.0.1:{port}{}", there.display())]].concat(),
            &rig,
        )
    };
    let output = curl(allowed, &["-T", "here"]);
    assert!(output.status.success(), "{}", text(output.stderr));
    assert!(fs::read(&there).unwrap() == content);
    let output = curl(allowed, &["-o", "back"]);
    assert!(output.status.success(), "{}", text(output.stderr));
    assert!(fs::read(rig.path("back")).unwrap() == content);
    assert!(!curl(denied, &["-o", "never"]).status.success() && !rig.path("never").exists());
}

#[test]
fn nodes_ssh2_logs_in_with_key_and_code_and_jumps() {
    let root = env!("CARGO_MANIFEST_DIR");
    let fetched = Command::new(format!("{root}/tests/node")).output().unwrap();
    assert!(fetched.status.success(), "{}", text(fetched.stderr));
    let rig = Rig::with_alice();
    let content = write(&rig.path("here"), 300_000);
    fs::write(rig.path("client.js"), SSH2).unwrap();
    let (port, there) = (rig.port.to_string(), rig.path("there"));
    let modules = format!("{root}/third_party/made-by-tests-node/node_modules");
    let client = |to: &str, code: &str| {
        let mut node = Command::new("timeout");
        node.args(["60", "node", "client.js", &port, to, &rig.login, there.to_str().unwrap(), code]);
        node.env("NODE_PATH", &modules).current_dir(rig.dir.path()).stdin(Stdio::null()).output().unwrap()
    };
    let output = client("db-1", "./code_alice");
    assert_eq!(text(output.stdout), "7 out err\n", "{}", text(output.stderr));
    assert!(fs::read(rig.path("back")).unwrap() == content && fs::read(&there).unwrap() == content);
    let said = text(client("db-9", "./code_alice").stdout);
    let reason = "db-9: (SSH) Channel open failure: You have no access to an instance named db-9";
    assert!(said.starts_with(reason), "{said}");
    assert_eq!(
        text(client("db-1", "/bin/true").stdout),
        "bastion: All configured authentication methods failed\n"
    );
}

const SSH2: &str = r#"
const { Client } = require('ssh2');
const { execFileSync } = require('child_process');
const { readFileSync } = require('fs');
const [port, to, login, there, code] = process.argv.slice(2);
const privateKey = readFileSync('id_alice');
const leave = (who) => (error) => { console.log(`${who}: ${error.message}`); process.exit(1); };
const bastion = new Client(), db = new Client();
bastion.on('keyboard-interactive', (name, instructions, lang, prompts, answer) =>
    answer(prompts.map(() => execFileSync(code).toString().trim())));
bastion.on('error', leave('bastion')).on('ready', () => bastion.forwardOut('127.0.0.1', 1, to, 22, (error, sock) => {
    if (error) leave(to)(error);
    db.on('error', leave(to)).on('ready', () => db.sftp((error, sftp) => {
        if (error) leave(to)(error);
        sftp.fastPut('here', there, (error) => error ? leave('put')(error) : sftp.fastGet(there, 'back', (error) => {
            if (error) leave('get')(error);
            db.exec('echo out; echo err >&2; exit 7', (error, stream) => {
                if (error) leave('exec')(error);
                let said = '', failed = '', status;
                stream.on('data', (bytes) => said += bytes).on('exit', (code) => status = code);
                stream.stderr.on('data', (bytes) => failed += bytes);
                stream.on('close', () => { console.log(status, said.trim(), failed.trim()); db.end(); bastion.end(); });
            });
        }));
    })).connect({ sock, username: login, privateKey });
}));
bastion.connect({ host: '127.0.0.1', port: Number(port), username: 'alice', privateKey, tryKeyboard: true });
"#;

/// `client PORT INSTANCE LOGIN THERE CODE`: `CODE` prints the code. Exits with the command's status, or with 90 and more where it
/// got no further.
const LIBSSH2: &str = r#"
#include <libssh2.h>
#include <libssh2_sftp.h>
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
static const char *program;
static void answer(const char *n, int nl, const char *i, int il, int count, const LIBSSH2_USERAUTH_KBDINT_PROMPT *p,
                   LIBSSH2_USERAUTH_KBDINT_RESPONSE *r, void **a) {
    for (int at = 0; at < count; at++) {
        char code[100] = "";
        FILE *said = popen(program, "r");
        if (fgets(code, sizeof code, said)) code[strcspn(code, "\n")] = 0;
        pclose(said);
        r[at].text = strdup(code);
        r[at].length = strlen(code);
    }
}
/* The inner connection lies in a channel of the outer one, which never waits: libssh2 reads until there is nothing. */
static ssize_t done(ssize_t count) {
    return count == LIBSSH2_ERROR_EAGAIN ? -EAGAIN : count;
}
static ssize_t to_channel(libssh2_socket_t s, const void *bytes, size_t size, int flags, void **abstract) {
    return done(libssh2_channel_write(*abstract, bytes, size));
}
static ssize_t from_channel(libssh2_socket_t s, void *bytes, size_t size, int flags, void **abstract) {
    return done(libssh2_channel_read(*abstract, bytes, size));
}
static int copy(LIBSSH2_SFTP *sftp, const char *there) {
    static char bytes[300000], back[300000];
    FILE *here = fopen("here", "rb"), *to = fopen("back", "wb");
    if (fread(bytes, 1, sizeof bytes, here) != sizeof bytes) return 0;
    LIBSSH2_SFTP_HANDLE *file = libssh2_sftp_open(sftp, there, LIBSSH2_FXF_WRITE | LIBSSH2_FXF_CREAT, 0600);
    for (size_t done = 0; done < sizeof bytes;) {
        ssize_t more = file ? libssh2_sftp_write(file, bytes + done, sizeof bytes - done) : -1;
        if (more < 0) return 0;
        done += more;
    }
    libssh2_sftp_close(file);
    file = libssh2_sftp_open(sftp, there, LIBSSH2_FXF_READ, 0);
    for (size_t done = 0; done < sizeof back;) {
        ssize_t more = file ? libssh2_sftp_read(file, back + done, sizeof back - done) : -1;
        if (more <= 0) return 0;
        done += more;
    }
    libssh2_sftp_close(file);
    fwrite(back, 1, sizeof back, to);
    fclose(to);
    return 1;
}
int main(int count, char **arg) {
    char text[100];
    int said;
    program = arg[5];
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(atoi(arg[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    int s = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(s, (void *)&at, sizeof at) || libssh2_init(0)) return 99;
    LIBSSH2_SESSION *outer = libssh2_session_init();
    if (libssh2_session_handshake(outer, s)) return libssh2_session_last_error(outer, &arg[0], 0, 0), fprintf(stderr, "%s\n", arg[0]), 98;
    /* Key, then code: the key alone is not enough, and libssh2 calls that a failure. */
    if (!libssh2_userauth_publickey_fromfile(outer, "alice", "id_alice.pub", "id_alice", "")) return 97;
    if (!strstr(libssh2_userauth_list(outer, "alice", 5), "keyboard-interactive")) return 96;
    if (libssh2_userauth_keyboard_interactive(outer, "alice", answer)) return 95;
    LIBSSH2_CHANNEL *jump = libssh2_channel_direct_tcpip(outer, arg[2], 22);
    if (!jump) return 93;
    libssh2_session_set_blocking(outer, 0);
    LIBSSH2_SESSION *inner = libssh2_session_init_ex(NULL, NULL, NULL, jump);
    libssh2_session_callback_set(inner, LIBSSH2_CALLBACK_SEND, (void *)to_channel);
    libssh2_session_callback_set(inner, LIBSSH2_CALLBACK_RECV, (void *)from_channel);
    if (libssh2_session_handshake(inner, s)) return 92;
    if (libssh2_userauth_publickey_fromfile(inner, arg[3], "id_alice.pub", "id_alice", "")) return 91;
    LIBSSH2_SFTP *sftp = libssh2_sftp_init(inner);
    if (!sftp || !copy(sftp, arg[4])) return 90;
    libssh2_sftp_shutdown(sftp);
    LIBSSH2_CHANNEL *c = libssh2_channel_open_session(inner);
    if (!c || libssh2_channel_exec(c, "echo out; echo err >&2; exit 7")) return 89;
    while ((said = libssh2_channel_read(c, text, sizeof text)) > 0) fwrite(text, 1, said, stdout);
    libssh2_channel_close(c);
    return libssh2_channel_get_exit_status(c);
}
"#;
