//! Tap interfaces: which can be used, and by whom.

#[path = "driver/network.rs"]
mod network;

use std::os::fd::{AsFd, AsRawFd};

use devices::virtio::net::{Tap, TapError};
use network::{in_network, ip};

#[test]
fn an_interface_that_is_no_tap_is_refused_with_what_to_do() {
    in_network(|| {
        let refused = |name: &str| {
            let error = Tap::open(name).expect_err(name);
            let text = error.to_string();
            assert!(text.contains(name) && !text.contains('\n'), "{text}");
            (error, text)
        };
        let (error, text) = refused("tap7");
        assert!(matches!(error, TapError::Missing(_)));
        assert!(text.contains("ip tuntap add tap7 mode tap"), "{text}");
        assert!(!network::exists("tap7"), "it was not made by asking");
        assert!(matches!(refused("lo").0, TapError::Kind(_)));
        ip("tuntap add tun0 mode tun");
        assert!(matches!(refused("tun0").0, TapError::Kind(_)));
        ip("tuntap add many0 mode tap multi_queue");
        assert!(matches!(refused("many0").0, TapError::Kind(_)));
        ip("tuntap add tap0 mode tap");
        let tap = Tap::open("tap0").unwrap();
        assert!(matches!(refused("tap0").0, TapError::InUse(_)));
        drop(tap);
        drop(Tap::open("tap0").unwrap());
        // Somebody else's.
        ip("tuntap add tap1 mode tap user 12345");
        network::give_up_rights();
        let (error, text) = refused("tap1");
        assert!(matches!(error, TapError::NotPermitted(_)), "{text}");
    });
}

#[test]
fn a_tap_interface_never_blocks() {
    in_network(|| {
        ip("tuntap add tap0 mode tap");
        let tap = Tap::open("tap0").unwrap();
        // SAFETY: no memory is involved.
        let flags = unsafe { libc::fcntl(tap.as_fd().as_raw_fd(), libc::F_GETFL) };
        assert_ne!(flags & libc::O_NONBLOCK, 0);
    });
}
