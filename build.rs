//! Says what to run where a piece that is no crate is missing: the console's player is embedded in the binary.

fn main() {
    let player = "third_party/made-by-deploy-prepare/asciinema-player";
    println!("cargo::rerun-if-changed={player}");
    println!("cargo::rerun-if-changed=src/console/assets");
    println!("cargo::rerun-if-changed=src/console/templates");
    if !std::path::Path::new(player).join("asciinema-player.min.js").exists() {
        println!("cargo::error=the web console's player is not in place; run: deploy/prepare");
    }
}
