//! A network that a guest and the host share: a tap interface in a network namespace of its own.

use std::fs;
use std::io;
use std::process::Command;

/// The host's address.
pub const HOST: &str = "10.0.0.1";
/// An address for the guest.
pub const GUEST: &str = "10.0.0.2";
/// The interface's name.
pub const NAME: &str = "tap0";

/// What the kernel has counted of an interface, from its own side: it receives what the guest sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Bytes that came from the guest.
    pub rx_bytes: u64,
    /// Packets that came from the guest.
    pub rx_packets: u64,
    /// Bytes that the guest's VMM took.
    pub tx_bytes: u64,
    /// Packets that the guest's VMM took.
    pub tx_packets: u64,
}

/// Moves this thread, and what it starts from now on, into a network namespace of its own, with a tap
/// interface.
///
/// # Panics
/// If that can not be done.
pub fn set_up() {
    // SAFETY: no memory is involved; the thread's own view alone changes.
    let unshared = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(unshared, 0, "unshare: {}: run the tests as root", io::Error::last_os_error());
    ip("link set lo up");
    ip(&format!("tuntap add {NAME} mode tap"));
    ip(&format!("address add {HOST}/24 dev {NAME}"));
    ip(&format!("link set {NAME} up"));
}

/// Runs the command `ip`.
///
/// # Panics
/// If it fails.
pub fn ip(args: &str) {
    let status = Command::new("ip").args(args.split(' ')).status();
    let status = status.expect("ip is missing: `apt-get install -y iproute2`");
    assert!(status.success(), "ip {args}: {status}");
}

/// What the kernel has counted of the tap interface.
///
/// # Panics
/// If there is none in this thread's namespace.
pub fn counters() -> Counters {
    let table = fs::read_to_string("/proc/thread-self/net/dev").expect("/proc is mounted");
    let line = table.lines().find_map(|line| line.trim().strip_prefix(NAME)?.strip_prefix(':'));
    let line = line.unwrap_or_else(|| panic!("{NAME} is not in:\n{table}"));
    let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    // Eight columns of what was received, eight of what was sent.
    let [rx_bytes, rx_packets, tx_bytes, tx_packets] = [0, 1, 8, 9].map(|index| numbers[index]);
    Counters { rx_bytes, rx_packets, tx_bytes, tx_packets }
}
