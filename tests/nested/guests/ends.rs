//! How guests end: by themselves in all ways that a kernel has, or from outside.

use tests::linux::Linux;
use tests::tracepoint::KvmReturns;

use super::{assert_ended, assert_powered_off};

pub fn power_off_and_resets_are_status_0() {
    let kernel = KvmReturns::watch_all();
    assert_powered_off(Linux::new("").with(|vmm| vmm.cpus(2)).run(), &kernel);

    // With what the VMM itself puts on the command line Linux takes ACPI's reset register. Then by the keyboard
    // controller, that register again, and a triple fault.
    for (how, counter, says) in [
        ("", "power_resets", None),
        ("reboot=k", "i8042_resets", None),
        ("reboot=a", "power_resets", None),
        ("reboot=t", "user_exit_shutdown", Some("triple fault")),
    ] {
        let kernel = KvmReturns::watch_all();
        let ended = Linux::new("reboot -f").cmdline(how).run();
        let (ended, flat) = assert_ended(ended, &kernel, 0);
        assert_eq!(flat.get(&format!("kvm/{counter}")), 1, "{how}");
        assert_eq!(flat.get("kvm/power_offs"), 0);
        match says {
            Some(part) => ended.assert_says(&["reset", part]),
            None => assert_eq!(ended.stderr, "", "{how}"),
        }
    }
}

pub fn a_panic_is_status_124() {
    let panic = "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger";
    for pvpanic in [true, false] {
        let kernel = KvmReturns::watch_all();
        let guest = Linux::new(panic).with(|vmm| vmm.cpus(2));
        let guest = if pvpanic { guest } else { guest.without_modules("pvpanic") };
        let (ended, flat) = assert_ended(guest.run(), &kernel, 124);
        ended.assert_says(&["crashed", "panic"]);
        assert_eq!(flat.get("kvm/pvpanic_panics"), u64::from(pvpanic));
        let console = String::from_utf8_lossy(&ended.stdout).into_owned();
        assert!(console.contains("Kernel panic - not syncing: sysrq triggered crash"), "{console}");
    }
}

pub fn a_signal_ends_it() {
    let kernel = KvmReturns::watch_all();
    let script = "(while :; do :; done) & echo READY; sleep 1000";
    let mut running = Linux::new(script).with(|vmm| vmm.cpus(2)).start();
    running.wait_for_line("READY");
    running.signal(libc::SIGTERM);
    let (ended, _) = assert_ended(running.wait(), &kernel, 143);
    assert_eq!(ended.stderr, "");
}
