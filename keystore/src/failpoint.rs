//! Where a test lets the process die, to see what is left: between two steps that a crash may come between.
//!
//! Only in builds with debug assertions, and only at the one point that `KEYWARD_TEST_DIE_AT` names; a release binary
//! has none of it.

/// Dies here, without a word and without unwinding, if a test asked for it: as if by `kill -9`.
pub fn reach(point: &str) {
    if cfg!(debug_assertions) && std::env::var("KEYWARD_TEST_DIE_AT").is_ok_and(|named| named == point) {
        std::process::abort();
    }
}

/// Waits here for as long as the file lies there that a test names in `KEYWARD_TEST_WAIT_FOR`, if it named this point in
/// `KEYWARD_TEST_WAIT_AT`: so that something else happens in between. Only in builds with debug assertions, too.
pub async fn wait(point: &str) {
    let here =
        cfg!(debug_assertions) && std::env::var("KEYWARD_TEST_WAIT_AT").is_ok_and(|named| named == point);
    let Some(file) = std::env::var_os("KEYWARD_TEST_WAIT_FOR").filter(|_| here) else { return };
    let file = std::path::PathBuf::from(file);
    // A test sees by this that somebody waits.
    if file.exists() && std::fs::write(&file, point).is_ok() {
        while file.exists() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}
