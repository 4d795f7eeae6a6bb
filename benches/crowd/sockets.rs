//! The bastion's ends of the sockets, as the kernel knows them: what a busy client or instance has not read yet counts as
//! closed.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Looks at them until no more than `left` are open to `instance`, and then none more to clients of `bastion` (ports).
/// Returns the moments.
pub fn watch((instance, bastion): (u16, u16), left: usize) -> JoinHandle<(Instant, Instant)> {
    std::thread::spawn(move || {
        let (mut legs, mut clients) = (None, None);
        loop {
            let open = Open::now(instance, bastion);
            let at = Instant::now();
            legs = legs.or((open.legs <= left).then_some(at));
            clients = clients.or((open.clients <= left).then_some(at));
            if let (Some(legs), Some(clients)) = (legs, clients) {
                return (legs, clients);
            }
            // To look costs milliseconds itself.
            std::thread::sleep(Duration::from_millis(8));
        }
    })
}

struct Open {
    legs: usize,
    clients: usize,
}

impl Open {
    /// Of proc_pid_net(5): the addresses, each `IP:PORT` in hexadecimal, and the state.
    fn now(instance: u16, bastion: u16) -> Self {
        let mut open = Self { legs: 0, clients: 0 };
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        for line in table.lines().skip(1) {
            let mut fields = line.split_whitespace().skip(1);
            let mut port =
                || u16::from_str_radix(fields.next().unwrap().split_once(':').unwrap().1, 16).unwrap();
            let (local, remote) = (port(), port());
            // ESTABLISHED, CLOSE_WAIT.
            if matches!(fields.next().unwrap(), "01" | "08") {
                open.legs += usize::from(remote == instance);
                open.clients += usize::from(local == bastion);
            }
        }
        open
    }
}
