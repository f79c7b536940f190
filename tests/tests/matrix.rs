//! Every call and every usual tool on the real tree, of a guest that runs meanwhile.

use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;

use tests::flat::Flat;
use tests::fs_matrix::{Place, as_user, errno_table, errno_table_of_other_user, tool_matrix};
use tests::guest::echo;
use tests::running::{Running, wait_until};
use tests::vmm::Vmm;

/// A guest that polls its serial port all the time. What it has received changes only when it is sent
/// something.
fn start() -> (Running, io::PipeWriter) {
    let (reader, writer) = io::pipe().unwrap();
    let vmm = Vmm::of_program(&echo()).stdin(reader);
    // Other users are to come as far as the mount.
    std::fs::set_permissions(vmm.directory(), PermissionsExt::from_mode(0o755)).unwrap();
    let running = vmm.start_mounted();
    running.wait_for_exits(100);
    (running, writer)
}

fn end(running: Running, mut writer: io::PipeWriter) {
    writer.write_all(b"!").unwrap();
    running.wait().assert(0);
}

/// Runs `examine` on a directory: of its values, one that only grows and one that does not.
fn on(directory: &str, cumulative: &str, floating: &str, examine: fn(&Place<'_>)) {
    let (running, writer) = start();
    let directory = running.path(&directory.replace("MACHINE", &running.machine()));
    let cumulative = directory.join(cumulative);
    let refill = || {
        let value = || std::fs::read_to_string(&cumulative).unwrap();
        if value() == "0\n" {
            (&writer).write_all(b"x").unwrap();
            wait_until("an echo", || (value() != "0\n").then_some(()));
        }
    };
    let before = running.value("kvm/user_exits");
    examine(&Place {
        mount: running.mount(),
        directory: &directory,
        cumulative: &cumulative,
        floating: &directory.join(floating),
        refill: &refill,
    });
    // It goes on all the time, as far as others leave it a processor.
    wait_until("exits", || (running.value("kvm/user_exits") > before).then_some(()));
    end(running, writer);
}

#[test]
fn calls_on_the_totals() {
    on("kvm", "serial_rx_bytes", "vm_memory_bytes", errno_table);
}

#[test]
fn calls_on_a_machine() {
    on("MACHINE", "serial_rx_bytes", "vm_memory_bytes", errno_table);
}

#[test]
fn calls_on_a_vcpu() {
    on("MACHINE/vcpu0", "io_writes", "thread_id", errno_table);
}

#[test]
fn calls_of_another_user() {
    on("kvm", "serial_rx_bytes", "vm_memory_bytes", errno_table_of_other_user);
}

#[test]
fn tools() {
    on("kvm", "serial_rx_bytes", "vm_memory_bytes", tool_matrix);
}

#[test]
fn another_user_sees_the_totals_and_no_machine() {
    let (running, writer) = start();
    let machine = running.path(&running.machine());
    as_user(65534, 65534, || {
        let names = std::fs::read_dir(running.path("kvm")).unwrap().map(|e| e.unwrap().path());
        assert!(names.into_iter().any(|path| path == machine), "that it is there is no secret");
        for path in [machine.clone(), machine.join("user_exits"), machine.join(".stats/flat")] {
            let error = path.metadata().and_then(|_| std::fs::read_dir(&path)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{}", path.display());
        }
        // What is in one file of everything is what could be read one by one.
        for bulk in [".stats/flat", "kvm/.stats/flat"] {
            let flat = Flat::read(&running.path(bulk));
            assert!(flat.get("kvm/user_exits") > 0);
            assert_eq!(flat.directories("kvm").iter().find(|name| name.contains("test")), None);
        }
        let clear = std::fs::write(running.path("kvm/.stats/clear"), "0").unwrap_err();
        assert_eq!(clear.kind(), io::ErrorKind::PermissionDenied);
    });
    assert!(running.value("kvm/user_exits") > 0);
    end(running, writer);
}
