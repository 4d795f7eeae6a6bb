//! What the modes of a terminal are called that a client asks for (RFC 4254 §8, RFC 8160).

use serde_json::{Map, Value};

/// Each mode by its name, with its argument. One without a name goes by its number; of one that is said twice the last
/// counts, as with sshd.
pub(super) fn named(modes: &[(u8, u32)]) -> Value {
    let name = |opcode: u8| {
        let known = NAMES.iter().find(|(number, _)| *number == opcode);
        known.map_or_else(|| opcode.to_string(), |(_, name)| (*name).to_owned())
    };
    let modes = modes.iter().map(|(opcode, argument)| (name(*opcode), Value::from(*argument)));
    Value::Object(modes.collect::<Map<_, _>>())
}

const NAMES: [(u8, &str); 57] = [
    (1, "VINTR"),
    (2, "VQUIT"),
    (3, "VERASE"),
    (4, "VKILL"),
    (5, "VEOF"),
    (6, "VEOL"),
    (7, "VEOL2"),
    (8, "VSTART"),
    (9, "VSTOP"),
    (10, "VSUSP"),
    (11, "VDSUSP"),
    (12, "VREPRINT"),
    (13, "VWERASE"),
    (14, "VLNEXT"),
    (15, "VFLUSH"),
    (16, "VSWTCH"),
    (17, "VSTATUS"),
    (18, "VDISCARD"),
    (30, "IGNPAR"),
    (31, "PARMRK"),
    (32, "INPCK"),
    (33, "ISTRIP"),
    (34, "INLCR"),
    (35, "IGNCR"),
    (36, "ICRNL"),
    (37, "IUCLC"),
    (38, "IXON"),
    (39, "IXANY"),
    (40, "IXOFF"),
    (41, "IMAXBEL"),
    (42, "IUTF8"),
    (50, "ISIG"),
    (51, "ICANON"),
    (52, "XCASE"),
    (53, "ECHO"),
    (54, "ECHOE"),
    (55, "ECHOK"),
    (56, "ECHONL"),
    (57, "NOFLSH"),
    (58, "TOSTOP"),
    (59, "IEXTEN"),
    (60, "ECHOCTL"),
    (61, "ECHOKE"),
    (62, "PENDIN"),
    (70, "OPOST"),
    (71, "OLCUC"),
    (72, "ONLCR"),
    (73, "OCRNL"),
    (74, "ONOCR"),
    (75, "ONLRET"),
    (90, "CS7"),
    (91, "CS8"),
    (92, "PARENB"),
    (93, "PARODD"),
    (128, "TTY_OP_ISPEED"),
    (129, "TTY_OP_OSPEED"),
    (0, "TTY_OP_END"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_shown_by_its_name_and_a_stranger_by_its_number() {
        let shown = named(&[(53, 1), (128, 38400), (200, 7), (53, 0)]);
        assert_eq!(shown, serde_json::json!({ "ECHO": 0, "TTY_OP_ISPEED": 38400, "200": 7 }));
        assert_eq!(named(&[]), serde_json::json!({}));
    }
}
