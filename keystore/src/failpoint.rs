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
