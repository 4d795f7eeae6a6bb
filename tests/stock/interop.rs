//! Other people's clients, each with key and code: a command with its exact output and exit status, a file both ways
//! where the client copies files, and the neighbour that is denied. docs/clients.md says what a person types.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::process::{Command, Output, Stdio};

use crate::rig::{Rig, text, wait_for, write};

/// What is run on the instance: output, error output and an exit status of its own.
const TELLING: &str = "echo out; echo err >&2; exit 7";

fn told(output: Output, who: &str) {
    let err = text(output.stderr);
    assert_eq!(output.status.code(), Some(7), "{who}: {err}");
    assert_eq!(text(output.stdout), "out\n", "{who}");
    assert!(err.contains("err\n"), "{who}: {err}");
}

fn kept_out(output: Output, who: &str) {
    assert!(!output.status.success() && !text(output.stdout).contains("out"), "{who}");
}

/// `command` as a person at a terminal has it: asked for the code there, `code_alice` types it.
fn typed(rig: &Rig, command: &str) -> Command {
    let (home, typist) = (rig.path("home"), rig.path("typist.py"));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(home.join(".ssh")).unwrap();
    fs::write(&typist, TYPIST).unwrap();
    let mut typed = Command::new("timeout");
    typed.args(["60", "/usr/bin/python3"]).arg(typist).args(["sh", "-c", command]);
    typed
        .env("HOME", home)
        .env("CODE", rig.path("code_alice"))
        .stdin(Stdio::null())
        .env_remove("SSH_AUTH_SOCK");
    typed.current_dir(rig.dir.path());
    typed
}

fn run(command: &str, rig: &Rig) {
    let output = Command::new("sh").args(["-c", command]).current_dir(rig.dir.path()).output().unwrap();
    assert!(output.status.success(), "{command}: {}", text(output.stderr));
}

#[test]
fn dbclient_jumps_by_multihop_and_by_j() {
    let rig = Rig::with_alice();
    run("dropbearconvert openssh dropbear id_alice id_alice.db", &rig);
    let at = |port, to: &str| {
        format!("/usr/bin/dbclient -i id_alice.db alice@127.0.0.1/{port},{}@{to}", rig.login)
    };
    // It reads no certificates: the bastion's own key stands for every name.
    let know = |file: &str| {
        let key = fs::read_to_string(rig.path(file)).unwrap();
        let key = key.splitn(3, ' ').take(2).collect::<Vec<_>>().join(" ");
        let known = ["127.0.0.1", "db-1", "db-9"].map(|name| format!("{name} {}\n", key.trim())).concat();
        fs::create_dir_all(rig.path("home/.ssh")).unwrap();
        fs::write(rig.path("home/.ssh/known_hosts"), known).unwrap();
    };
    know("instance_key.pub");
    let multihop = typed(&rig, &format!("{} '{TELLING}'", at(rig.port, "db-1"))).output().unwrap();
    kept_out(multihop, "dbclient knows another host key");
    know("bastion/host_key.pub");
    told(typed(&rig, &format!("{} '{TELLING}'", at(rig.port, "db-1"))).output().unwrap(), "multihop");
    kept_out(typed(&rig, &format!("{} '{TELLING}'", at(rig.port, "db-9"))).output().unwrap(), "no rule");

    let jump = format!("dbclient -i id_alice.db -p {} -B db-1:22 alice@127.0.0.1", rig.port);
    let client = format!("dbclient -i id_alice.db -J '{jump}'");
    told(typed(&rig, &format!("{client} {}@db-1 '{TELLING}'", rig.login)).output().unwrap(), "-J");
    let content = write(&rig.path("here"), 300_000);
    let there = rig.path("there");
    let copy = format!("rsync -e \"{client}\" here {}@db-1:{}", rig.login, there.display());
    let output = typed(&rig, &copy).output().unwrap();
    assert!(output.status.success(), "{}", text(output.stderr));
    assert!(fs::read(there).unwrap() == content);
}

#[test]
fn putty_jumps_by_a_proxy_command_and_by_its_own_ssh_proxy() {
    let rig = Rig::with_alice();
    run("puttygen id_alice -O private -o id_alice.ppk", &rig);
    let outer = format!("plink -i id_alice.ppk -P {} -nc %host:%port alice@127.0.0.1", rig.port);
    let plink =
        |to: &str| format!("plink -i id_alice.ppk -proxycmd '{outer}' {}@{to} '{TELLING}'", rig.login);
    kept_out(typed(&rig, &plink("db-1")).output().unwrap(), "plink trusts no host CA");

    // The one line of trust, as PuTTY writes it (Connection, SSH, Host keys, Configure host CAs).
    let putty = rig.path("home/.putty");
    fs::create_dir_all(putty.join("sshhostcas")).unwrap();
    fs::create_dir_all(putty.join("sessions")).unwrap();
    let ca = rig.ok(&["ca", "show", "host"]);
    let ca = ca.split_whitespace().nth(3).unwrap();
    let trust =
        format!("PublicKey={ca}\nValidity=*\nPermitRSASHA1=0\nPermitRSASHA256=1\nPermitRSASHA512=1\n");
    fs::write(putty.join("sshhostcas/keyward"), trust).unwrap();
    told(typed(&rig, &plink("db-1")).output().unwrap(), "-proxycmd");
    kept_out(typed(&rig, &plink("db-9")).output().unwrap(), "no rule");

    // Saved sessions, as PuTTY's dialogs write them: `db-1` goes through `bastion`.
    let key = rig.path("id_alice.ppk");
    let session = |host: &str, port: u16, user: &str, more: &str| {
        let key = key.display();
        format!(
            "Protocol=ssh\nHostName={host}\nPortNumber={port}\nUserName={user}\nPublicKeyFile={key}\n{more}"
        )
    };
    fs::write(putty.join("sessions/bastion"), session("127.0.0.1", rig.port, "alice", "")).unwrap();
    let through = format!("ProxyMethod=6\nProxyHost=bastion\nProxyPort={}\n", rig.port);
    fs::write(putty.join("sessions/db-1"), session("db-1", 22, &rig.login, &through)).unwrap();
    told(typed(&rig, &format!("plink -load db-1 '{TELLING}'")).output().unwrap(), "saved session");

    let content = write(&rig.path("here"), 300_000);
    fs::write(rig.path("batch"), format!("put here {0}\nget {0} back\n", rig.path("there").display()))
        .unwrap();
    let output = typed(&rig, "psftp -load db-1 -b batch").output().unwrap();
    assert!(output.status.success(), "{}", text(output.stderr));
    assert!(fs::read(rig.path("back")).unwrap() == content);
}

#[test]
fn lftp_copies_over_a_connection_that_is_open_already() {
    let rig = Rig::with_alice();
    let content = write(&rig.path("here"), 300_000);
    let config = rig.config("alice", &rig.master("bastion"));
    assert!(rig.shared("ssh", "alice").args(["db-1", "true"]).status().unwrap().success());
    for (to, arrives) in [("db-1", true), ("db-9", false)] {
        let script = format!(
            "set sftp:connect-program 'ssh -a -x -F {}'; set net:max-retries 1; set net:timeout 10; \
             set cmd:fail-exit yes; put here -o {there}; get {there} -o back-{to}; exit",
            config.display(),
            there = rig.path("there").display(),
        );
        let mut lftp = Command::new("timeout");
        lftp.args(["40", "lftp", "-e", &script, &format!("sftp://{}:@{to}", rig.login)]);
        // Nobody is asked: the code was given when the connection was opened.
        lftp.current_dir(rig.dir.path()).env("HOME", rig.dir.path()).stdin(Stdio::null());
        let output = lftp.output().unwrap();
        assert_eq!(output.status.success(), arrives, "{to}: {}", text(output.stderr));
        let back = fs::read(rig.path(&format!("back-{to}"))).ok();
        assert!(back == arrives.then(|| content.clone()), "{to}");
    }
    rig.shared("ssh", "alice").args(["-O", "exit", "bastion"]).stderr(Stdio::null()).status().unwrap();
}

#[test]
fn sshfs_mounts_what_the_rules_allow() {
    let rig = Rig::with_alice();
    fs::create_dir_all(rig.path("far")).unwrap();
    fs::create_dir_all(rig.path("near")).unwrap();
    let mut mount = rig.client("sshfs", "alice");
    mount.arg(format!("db-9:{}", rig.path("far").display())).arg(rig.path("near"));
    assert!(!mount.output().unwrap().status.success());
    if fs::File::options().read(true).write(true).open("/dev/fuse").is_err() {
        return eprintln!("this machine gives no FUSE: sshfs was not tried");
    }
    let mut mount = rig.client("sshfs", "alice");
    mount.arg(format!("db-1:{}", rig.path("far").display())).arg(rig.path("near"));
    let output = mount.output().unwrap();
    assert!(output.status.success(), "{}", text(output.stderr));
    let content = write(&rig.path("near/file"), 300_000);
    let arrived = fs::read(rig.path("far/file")).unwrap();
    fs::write(rig.path("far/back"), "from there").unwrap();
    let back = fs::read_to_string(rig.path("near/back"));
    let unmounted = Command::new("fusermount3").arg("-u").arg(rig.path("near")).status().unwrap();
    assert!(unmounted.success() && arrived == content);
    assert_eq!(back.unwrap(), "from there");
}

#[test]
fn paramikos_own_client_logs_in_with_the_code_as_its_password() {
    let rig = Rig::with_alice();
    write(&rig.path("here"), 300_000);
    assert_eq!(rig.paramiko("alice", SSH_CLIENT), "7 out err True\ndb-9 refused\nwrong code refused\n");
}

#[test]
fn asyncssh_jumps_with_one_tunnel() {
    let rig = Rig::with_alice();
    let content = write(&rig.path("here"), 300_000);
    let program = rig.path("program.py");
    fs::write(&program, ASYNCSSH).unwrap();
    rig.config("alice", "");
    let mut python = Command::new("timeout");
    python.args(["60", "/usr/bin/python3", "-W", "ignore"]).arg(program).current_dir(rig.dir.path());
    python.args([&rig.port.to_string(), &rig.login]).stdin(Stdio::null());
    let output = python.output().unwrap();
    assert_eq!(text(output.stdout), "7 out err\ndb-9 refused\n", "{}", text(output.stderr));
    assert!(fs::read(rig.path("back")).unwrap() == content);
}

#[test]
fn libssh_jumps_by_a_proxy_command() {
    let rig = Rig::with_alice();
    fs::write(rig.path("client.c"), LIBSSH).unwrap();
    run("cc client.c -o client -lssh", &rig);
    // It reads no certificates either.
    let key = fs::read_to_string(rig.path("bastion/host_key.pub")).unwrap();
    fs::write(rig.path("known"), format!("db-1 {key}\ndb-9 {key}\n")).unwrap();
    let proxy = format!("ssh -F {} -W %h:22 bastion", rig.config("alice", "").display());
    for (to, arrives) in [("db-1", true), ("db-9", false)] {
        let mut client = Command::new("timeout");
        client
            .args(["30", "./client", to, &rig.login, &proxy])
            .current_dir(rig.dir.path())
            .stdin(Stdio::null());
        let output = rig.asked(&mut client, "alice");
        if arrives { told(output, to) } else { kept_out(output, to) }
    }
}

#[test]
fn ansible_runs_on_many_instances_with_one_code() {
    let rig = Rig::with_alice();
    for name in ["db-2", "db-9"] {
        rig.add_instance(name);
    }
    rig.ok(&["access", "allow", "--user", "alice", "--instance", "db-2", "--login", &rig.login]);
    let content = write(&rig.path("here"), 300_000);
    let (dir, config) = (rig.dir.path().display(), rig.config("alice", &rig.master("bastion")));
    let inventory = "db-1\ndb-2\ndb-9\n[all:vars]\nansible_python_interpreter=/usr/bin/python3\n";
    fs::write(rig.path("inventory"), inventory).unwrap();
    // Its own defaults, and our file.
    let settings = format!(
        "[defaults]\ninventory={dir}/inventory\nlocal_tmp={dir}/local\nremote_tmp={dir}/remote\n\
         [ssh_connection]\nssh_args=-F {} -C -o ControlMaster=auto -o ControlPersist=60s\n",
        config.display()
    );
    fs::write(rig.path("ansible.cfg"), settings).unwrap();
    assert!(rig.shared("ssh", "alice").args(["db-1", "true"]).status().unwrap().success());
    let ansible = |args: &[&str]| {
        let mut ansible = Command::new("timeout");
        ansible.args(["120", "ansible"]).args(args).current_dir(rig.dir.path()).stdin(Stdio::null());
        ansible
            .env("ANSIBLE_CONFIG", rig.path("ansible.cfg"))
            .env("HOME", rig.dir.path())
            .env("LC_ALL", "C.UTF-8");
        ansible.output().unwrap()
    };
    let there = rig.path("there");
    let output = ansible(&["db-1", "-m", "copy", "-a", &format!("src={dir}/here dest={}", there.display())]);
    assert!(output.status.success(), "{}{}", text(output.stdout), text(output.stderr));
    assert!(fs::read(there).unwrap() == content);
    let output = ansible(&["all", "-o", "-m", "shell", "-a", "echo to $((40 + 2))"]);
    let out = text(output.stdout);
    for line in ["db-1 | CHANGED | rc=0 | (stdout) to 42", "db-2 | CHANGED | rc=0 | (stdout) to 42"] {
        assert!(out.contains(line), "{out}{}", text(output.stderr));
    }
    assert!(out.contains("db-9 | UNREACHABLE!"), "{out}");
    assert_eq!(fs::read_to_string(rig.path("count_alice")).unwrap().trim(), "1", "one code for all of it");
    rig.shared("ssh", "alice").args(["-O", "exit", "bastion"]).stderr(Stdio::null()).status().unwrap();
}

#[test]
fn visual_studio_codes_way_works_with_the_forward_capability_only() {
    for forwards in [true, false] {
        let rig = Rig::with_alice();
        if forwards {
            let allow =
                ["access", "allow", "--user", "alice", "--instance", "db-1", "--can", "forward", "--login"];
            rig.ok(&[&allow[..], &[&rig.login]].concat());
        }
        // It pipes a script that starts a server into `ssh -T -D PORT HOST bash`, reads where the server listens
        // from its output, and opens one connection after another through the SOCKS port, each to that server.
        let socks = crate::rig::free_port();
        let mut ssh = rig.client("ssh", "alice");
        ssh.args(["-T", "-D", &socks.to_string(), "-o", "ConnectTimeout=15", "db-1", "bash"]);
        let mut ssh =
            ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let script = format!("cd {}\n{SERVER}", rig.dir.path().display());
        std::io::Write::write_all(ssh.stdin.as_mut().unwrap(), script.as_bytes()).unwrap();
        wait_for("the server to say where it listens", || rig.path("port").exists());
        let port = fs::read_to_string(rig.path("port")).unwrap();
        fs::write(rig.path("socks.py"), SOCKS).unwrap();
        let mut many = Command::new("timeout");
        many.args(["60", "/usr/bin/python3"])
            .arg(rig.path("socks.py"))
            .args([&socks.to_string(), port.trim()]);
        let many = many.stdin(Stdio::null()).output().unwrap();
        drop(ssh.stdin.take());
        let output = ssh.wait_with_output().unwrap();
        assert_eq!(text(output.stdout), format!("listening on {}\nserver gone\n", port.trim()));
        assert_eq!(output.status.code(), Some(3), "{}", text(output.stderr));
        let exact = if forwards { 20 } else { 0 };
        assert_eq!(rig.events("forward_denied").is_empty(), forwards);
        assert_eq!(text(many.stdout), format!("{exact} of 20\n"), "{}", text(many.stderr));
    }
}

/// Runs its arguments with a terminal of their own and types the code there when it is asked for.
const TYPIST: &str = r#"
import fcntl, os, select, subprocess, sys, termios
ours, theirs = os.openpty()
def take():
    os.setsid()
    fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
client = subprocess.Popen(sys.argv[1:], preexec_fn=take)
seen = b''
while client.poll() is None:
    if select.select([ours], [], [], 0.05)[0]:
        seen += os.read(ours, 4096)
        if b'Verification code: ' in seen:
            seen = b''
            os.write(ours, subprocess.check_output([os.environ['CODE']]))
sys.exit(client.returncode)
"#;

const SSH_CLIENT: &str = r#"
def client(host, port, user, **more):
    c = paramiko.SSHClient()
    c.set_missing_host_key_policy(paramiko.AutoAddPolicy())
    c.connect(host, port, user, pkey=KEY, look_for_keys=False, allow_agent=False, timeout=20, **more)
    return c
def to(name):
    pipe = bastion.get_transport().open_channel('direct-tcpip', (name, 22), ('127.0.0.1', 1))
    return client(name, 22, LOGIN, sock=pipe)
bastion = client('127.0.0.1', PORT, USER, password=code())
db = to('db-1')
_, out, err = db.exec_command('echo out; echo err >&2; exit 7')
said = out.read().decode().strip(), err.read().decode().strip()
sftp = db.open_sftp()
sftp.put(D + '/here', D + '/there')
sftp.get(D + '/there', D + '/back')
same = open(D + '/here', 'rb').read() == open(D + '/back', 'rb').read()
print(out.channel.recv_exit_status(), *said, same)
try: to('db-9')
except paramiko.ChannelException: print('db-9 refused')
try: client('127.0.0.1', PORT, USER, password='000000')
except paramiko.AuthenticationException: print('wrong code refused')
db.close(); bastion.close()
"#;

const ASYNCSSH: &str = r#"
import asyncio, asyncssh, os, subprocess, sys
port, login = int(sys.argv[1]), sys.argv[2]
class Asked(asyncssh.SSHClient):
    def kbdint_auth_requested(self): return ''
    def kbdint_challenge_received(self, name, instructions, lang, prompts):
        return [subprocess.check_output(['./code_alice']).decode().strip() for _ in prompts]
how = dict(client_keys=['id_alice'], known_hosts='known_hosts', config=None, agent_path=None)
async def main():
    async with asyncssh.connect('127.0.0.1', port, username='alice', client_factory=Asked, **how) as bastion:
        async with bastion.connect_ssh('db-1', username=login, **how) as db:
            done = await db.run('echo out; echo err >&2; exit 7')
            print(done.exit_status, done.stdout.strip(), done.stderr.strip())
            async with db.start_sftp_client() as sftp:
                await sftp.put('here', os.path.abspath('there'))
                await sftp.get(os.path.abspath('there'), 'back')
        try: await bastion.connect_ssh('db-9', username=login, **how)
        except asyncssh.ChannelOpenError: print('db-9 refused')
asyncio.run(main())
"#;

const LIBSSH: &str = r#"
#include <libssh/libssh.h>
#include <stdio.h>
int main(int count, char **arg) {
    int off = 0, said;
    char text[100];
    ssh_key key;
    ssh_session s = ssh_new();
    ssh_options_set(s, SSH_OPTIONS_PROCESS_CONFIG, &off);
    ssh_options_set(s, SSH_OPTIONS_HOST, arg[1]);
    ssh_options_set(s, SSH_OPTIONS_USER, arg[2]);
    ssh_options_set(s, SSH_OPTIONS_PROXYCOMMAND, arg[3]);
    ssh_options_set(s, SSH_OPTIONS_KNOWNHOSTS, "known");
    if (ssh_connect(s) != SSH_OK) return fprintf(stderr, "%s\n", ssh_get_error(s)), 99;
    if (ssh_session_is_known_server(s) != SSH_KNOWN_HOSTS_OK) return 98;
    if (ssh_pki_import_privkey_file("id_alice", NULL, NULL, NULL, &key) != SSH_OK) return 97;
    if (ssh_userauth_publickey(s, NULL, key) != SSH_AUTH_SUCCESS) return 96;
    ssh_channel c = ssh_channel_new(s);
    if (ssh_channel_open_session(c) != SSH_OK) return 95;
    if (ssh_channel_request_exec(c, "echo out; echo err >&2; exit 7") != SSH_OK) return 94;
    while ((said = ssh_channel_read(c, text, sizeof text, 0)) > 0) fwrite(text, 1, said, stdout);
    while ((said = ssh_channel_read(c, text, sizeof text, 1)) > 0) fwrite(text, 1, said, stderr);
    return ssh_channel_get_exit_status(c);
}
"#;

/// What Visual Studio Code pipes into the shell, cut to its bones: a server in the background, and its port.
const SERVER: &str = r#"
main() {
cat > server.py <<'END'
import os, socket, threading
server = socket.create_server(('127.0.0.1', 0))
def echo(peer):
    while data := peer.recv(65536): peer.sendall(data)
    peer.close()
open('part', 'w').write(f'{server.getsockname()[1]}\n')
os.rename('part', 'port')
while True: threading.Thread(target=echo, args=server.accept()[:1], daemon=True).start()
END
/usr/bin/python3 server.py < /dev/null > /dev/null 2>&1 &
server=$!
while [ ! -e port ]; do sleep 0.1; done
echo "listening on $(cat port)"
cat > /dev/null
kill $server && echo "server gone"
exit 3
}
main
"#;

/// Twenty connections through the SOCKS port, each with 100 kB there and back.
const SOCKS: &str = r#"
import os, socket, struct, sys, threading
exact = []
def one():
    s = socket.create_connection(('127.0.0.1', int(sys.argv[1])))
    s.settimeout(20)
    s.sendall(b'\5\1\0')
    s.recv(2)
    s.sendall(b'\5\1\0\3\x09localhost' + struct.pack('>H', int(sys.argv[2])))
    if s.recv(10)[1:2] != b'\0': return
    said, heard = os.urandom(100000), b''
    threading.Thread(target=lambda: (s.sendall(said), s.shutdown(socket.SHUT_WR))).start()
    while data := s.recv(65536): heard += data
    if heard == said: exact.append(1)
threads = [threading.Thread(target=one) for _ in range(20)]
for t in threads: t.start()
for t in threads: t.join()
print(len(exact), 'of 20')
"#;
