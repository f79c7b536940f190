//! The kernel's command line: defaults that make a guest usable, each of which gives way to the user's own
//! word on the same matter.

/// Parameters that the user's own setting replaces.
const DEFAULTS: [(&str, &str); 2] = [
    // The console is the VMM's terminal.
    ("console", "ttyS0"),
    // Do not wait after a panic: reset, which ends the guest.
    ("panic", "-1"),
];
/// Makes the reset after a panic a warm one, and leaves others as they are. That makes no difference to the
/// guest, which ends in either case; but the VMM can tell by it that there was a panic (see
/// [`RESET_FLAG`](crate::arch::x86_64::layout::RESET_FLAG)). The parameter is a list of words on several
/// matters, so this one stands beside what the user says on the others.
const REBOOT: &str = "reboot";
const PANIC_WARM: &str = "panic_warm";

/// The command line for what the user says: the defaults, without those that the user sets, and then the
/// user's.
pub fn with_defaults(user: &str) -> String {
    let mut words: Vec<_> = DEFAULTS
        .into_iter()
        .filter(|(name, _)| values(user, name).next().is_none())
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    if !reboot_words(user).any(|word| word.starts_with("panic_")) {
        words.push(format!("{REBOOT}={PANIC_WARM}"));
    }
    let user = user.trim();
    if !user.is_empty() {
        words.push(user.to_string());
    }
    words.join(" ")
}

/// Whether the reset after a panic is a warm one, and others are not.
pub fn tells_panics(cmdline: &str) -> bool {
    let mut of_panic = reboot_words(cmdline).filter(|word| word.starts_with("panic_"));
    let is_warm = of_panic.next() == Some(PANIC_WARM) && of_panic.next().is_none();
    // The kernel looks at a word's first letter.
    is_warm && !reboot_words(cmdline).any(|word| word.starts_with('w'))
}

fn reboot_words(cmdline: &str) -> impl Iterator<Item = &str> {
    values(cmdline, REBOOT).flat_map(|value| value.split(','))
}

/// The values that a command line gives a parameter. Words after `--` are the first program's, not the
/// kernel's.
fn values<'a>(cmdline: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    cmdline
        .split_ascii_whitespace()
        .take_while(|word| *word != "--")
        .map(|word| word.split_once('=').unwrap_or((word, "")))
        .filter(move |(word, _)| *word == name)
        .map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_has_the_last_word() {
        let defaults = "console=ttyS0 panic=-1 reboot=panic_warm";
        assert_eq!(with_defaults(""), defaults);
        assert_eq!(with_defaults(" quiet  ro "), format!("{defaults} quiet  ro"));
        for (user, before) in [
            ("panic=0 console=hvc0 console=tty0", "reboot=panic_warm "),
            ("console=ttyS0,115200", "panic=-1 reboot=panic_warm "),
            ("panic=5 reboot=t", "console=ttyS0 reboot=panic_warm "),
            ("reboot=k,panic_cold", "console=ttyS0 panic=-1 "),
            // Parameters of the first program, and others that only begin alike.
            ("consoleblank=0 panic_on_oops=1 -- panic=0", &format!("{defaults} ")),
        ] {
            assert_eq!(with_defaults(user), format!("{before}{user}"));
        }
    }

    #[test]
    fn a_panic_is_told_by_a_warm_reset_if_nothing_else_is_one() {
        for tells in ["", "quiet", "reboot=k", "reboot=t,force", "reboot=panic_warm,acpi"] {
            assert!(tells_panics(&with_defaults(tells)), "{tells}");
        }
        for not in ["reboot=warm", "reboot=w,k", "reboot=panic_cold", "reboot=k reboot=w"] {
            assert!(!tells_panics(&with_defaults(not)), "{not}");
        }
        assert!(!tells_panics("quiet -- reboot=panic_warm"));
    }
}
