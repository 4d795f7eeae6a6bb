//! CPU and memory of a process and its children, and the table of ratios.

use std::fs;

use serde_json::{Value, json};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    OpenSsh,
    Keyward,
}

impl Host {
    pub const BOTH: [Self; 2] = [Self::OpenSsh, Self::Keyward];
}

/// CPU of a process, of its living descendants, and of those it has waited for.
pub fn cpu_seconds(pid: u32) -> f64 {
    let mut ticks = 0;
    for id in family(pid) {
        let Ok(stat) = fs::read_to_string(format!("/proc/{id}/stat")) else { continue };
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        // utime, stime, cutime, cstime: fields 14 to 17 of proc(5), two of which stand before the ')'.
        ticks += fields[11..15].iter().map(|f| f.parse::<u64>().unwrap()).sum::<u64>();
    }
    // Linux counts in hundredths (USER_HZ) whatever the kernel's own tick is.
    ticks as f64 / 100.0
}

/// Proportional set size of a process and its descendants.
pub fn pss_kib(pid: u32) -> u64 {
    let of = |id: u32| {
        let text = fs::read_to_string(format!("/proc/{id}/smaps_rollup")).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix("Pss:")).unwrap_or("0 kB");
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    family(pid).into_iter().map(of).sum()
}

fn family(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut next = 0;
    while next < all.len() {
        let id = all[next];
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        all.extend(children.split_whitespace().map(|c| c.parse::<u32>().unwrap()));
        next += 1;
    }
    all
}

pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

pub struct Table {
    rows: Vec<(String, Vec<f64>, Vec<f64>)>,
    last: Value,
}

impl Table {
    pub fn read() -> Self {
        let last =
            fs::read_to_string(FILE).ok().and_then(|t| serde_json::from_str(&t).ok()).unwrap_or_default();
        Self { rows: Vec::new(), last }
    }

    pub fn row(&mut self, name: &str, openssh: Vec<f64>, keyward: Vec<f64>) {
        eprintln!("{name}: OpenSSH {:.2}, Keyward {:.2}", median(&openssh), median(&keyward));
        self.rows.push((name.to_owned(), openssh, keyward));
    }

    /// Medians; the ratio of each pair of runs, as median and range; the ratio of the last run.
    pub fn print_and_write(&self) {
        println!("| | OpenSSH | Keyward, recorded | ratio | range | last run |\n|---|---|---|---|---|---|");
        let mut file = serde_json::Map::new();
        for (name, openssh, keyward) in &self.rows {
            let mut ratios: Vec<f64> = openssh.iter().zip(keyward).map(|(o, k)| k / o).collect();
            ratios.sort_by(f64::total_cmp);
            let ratio = median(&ratios);
            let last = self.last[name]["ratio"].as_f64().map_or("-".to_owned(), |r| format!("{r:.2}"));
            let (o, k) = (median(openssh), median(keyward));
            let (low, high) = (ratios[0], ratios[ratios.len() - 1]);
            println!("| {name} | {o:.1} | {k:.1} | **{ratio:.2}** | {low:.2}–{high:.2} | {last} |");
            file.insert(name.clone(), json!({ "openssh": o, "keyward": k, "ratio": ratio }));
        }
        fs::write(FILE, serde_json::to_string_pretty(&file).unwrap()).unwrap();
    }
}

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/jump-bench.json");
