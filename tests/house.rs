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
        for (file, text) in sources(&Path::new("src").join(room)) {
            for (other, other_floor) in FLOORS {
                let imports = text.contains(&format!("crate::{other}::"))
                    || text.contains(&format!("crate::{other};"))
                    || text.contains(&format!("crate::{{{other}"));
                if other != room && other_floor >= floor && imports {
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
    let main = fs::read_to_string("src/main.rs").unwrap_or_default();
    assert!(main.lines().count() <= 15);
}

fn sources(root: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        // A room that is drawn in the table but not built yet has no sources.
        for entry in fs::read_dir(folder).into_iter().flatten() {
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
