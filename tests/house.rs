//! The house's walls: which room may import which, checked on the sources themselves.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::path::{Path, PathBuf};

/// Rooms and their floors. A room imports only rooms on lower floors, and itself.
const FLOORS: [(&str, u8); 14] = [
    ("cli", 11),
    ("server", 10),
    ("console", 9),
    ("ingress", 8),
    ("admin", 8),
    ("session", 7),
    ("rotation", 7),
    ("egress", 6),
    ("recording", 5),
    ("config", 5),
    ("policy", 4),
    ("auth", 3),
    ("guard", 2),
    ("audit", 2),
];

#[test]
fn a_room_imports_only_lower_floors() {
    let mut faults = Vec::new();
    for (room, floor) in FLOORS {
        let own = sources(&Path::new("src").join(room));
        assert!(!own.is_empty(), "src/{room} has no sources: what does its floor stand for?");
        for (file, text) in own {
            let named = rooms_named(&text);
            for (other, other_floor) in FLOORS {
                if other != room && other_floor >= floor && named.iter().any(|name| name == other) {
                    faults.push(format!(
                        "{}: {room} (floor {floor}) imports {other} (floor {other_floor})",
                        file.display()
                    ));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// The first names of all paths that begin at the crate's root: `crate::a::b`, and each of `crate::{a, b::{c, d}}`.
fn rooms_named(code: &str) -> Vec<String> {
    let mut named = Vec::new();
    for rest in code.split("crate::").skip(1) {
        let Some(group) = rest.strip_prefix('{') else {
            named.push(first_name(rest));
            continue;
        };
        let (mut depth, mut start) = (0, 0);
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth > 0 => depth -= 1,
                ',' | '}' if depth == 0 => {
                    named.push(first_name(group[start..at].trim_start()));
                    start = at + 1;
                    if c == '}' {
                        break;
                    }
                }
                _ => {}
            }
        }
    }
    named
}

fn first_name(path: &str) -> String {
    path.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

#[test]
fn every_way_to_name_a_room_is_seen() {
    let named = rooms_named("use crate::a::B;\nuse crate::{b, c::{D, e::F}, g};\nlet x = crate::h::i();");
    assert_eq!(named, ["a", "b", "c", "g", "h"]);
}

#[test]
fn the_command_line_opens_no_store() {
    for (file, text) in sources(Path::new("src/cli")) {
        let opens = ["Embedded::open", "Vault::new", "Journal::open"].iter().any(|o| text.contains(o));
        assert!(!opens, "{} opens the store, which the daemon has locked", file.display());
    }
}

#[test]
fn every_room_has_a_floor() {
    for entry in fs::read_dir("src").unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            let name = entry.file_name().into_string().unwrap();
            assert!(FLOORS.iter().any(|(room, _)| *room == name), "src/{name} has no floor");
        }
    }
}

#[test]
fn only_ingress_and_egress_import_russh() {
    for (file, text) in sources(Path::new("src")) {
        let at_the_wire = file.starts_with("src/ingress") || file.starts_with("src/egress");
        let imports = text.contains("russh::") || text.contains("use russh");
        assert!(at_the_wire || !imports, "{} imports russh", file.display());
    }
}

#[test]
fn only_the_embedded_backend_imports_sled() {
    for root in ["src", "keystore/src"] {
        for (file, text) in sources(Path::new(root)) {
            let inside = file.starts_with("keystore/src/backend/embedded")
                || file == Path::new("keystore/src/backend/embedded.rs");
            assert!(inside || !text.contains("sled::"), "{} imports sled", file.display());
        }
    }
}

#[test]
fn main_is_a_few_lines() {
    let main = fs::read_to_string("src/main.rs").unwrap();
    assert!(main.lines().count() <= 15);
}

fn sources(root: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let code = text.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>();
                found.push((path, code.join("\n")));
            }
        }
    }
    found
}
