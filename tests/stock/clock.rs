//! A clock that a test moves: every program that it starts reads the time through Debian's libfaketime.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

pub struct Clock {
    library: String,
    shared: String,
    keeper: Child,
}

impl Clock {
    /// `faketime` knows where its library is. It is kept for its shared memory too: a program that is given none makes
    /// its own, leaves it behind when it is killed, and the next one of the same process id does not start.
    pub fn new() -> Self {
        let told = "echo \"$LD_PRELOAD\"; echo \"$FAKETIME_SHARED\"; exec cat";
        let mut keeper = Command::new("faketime");
        keeper.args(["-m", "-f", "+0", "sh", "-c", told]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut keeper = keeper.spawn().expect("faketime, which tests/run installs");
        let mut lines = BufReader::new(keeper.stdout.take().unwrap()).lines();
        let (library, shared) = (lines.next().unwrap().unwrap(), lines.next().unwrap().unwrap());
        Self { library, shared, keeper }
    }

    /// What a program is started with to live so many days from now. Only dates move: what it waits for takes its time,
    /// and files are as old as they are.
    pub fn days_ahead(&self, days: u32) -> Vec<(&'static str, String)> {
        vec![
            ("LD_PRELOAD", self.library.clone()),
            ("FAKETIME_SHARED", self.shared.clone()),
            ("FAKETIME", format!("+{days}d")),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("NO_FAKE_STAT", "1".to_owned()),
        ]
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        self.keeper.wait().ok();
    }
}
