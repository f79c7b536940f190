//! Machines with a kernel: one of a few instructions, in the form of a bzImage or an ELF image.

use std::path::Path;

use super::*;
use crate::exit::ExitReason::Again;
use crate::images::{bzimage, elf};
use crate::lifecycle::Reset;
use crate::run::{Outcome, outcome};
use crate::virtio::VirtioConfig;

const INITRD: &[u8] = b"INITRD--and more";

fn kernel_config(image: &[u8], vcpus: u32, cmdline: &str) -> Config {
    let files = tempfile::tempdir().unwrap();
    let path = |name: &str, bytes: &[u8]| {
        let path = files.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let initrd = path("initrd", INITRD);
    let open = |image: &Path| Kernel::open(image, Some(&initrd), cmdline.into()).unwrap();
    Config {
        name: "test".into(),
        memory: 4 << 20,
        vcpus,
        // The files are open now, and need their names no more.
        guest: Guest::Kernel {
            kernel: open(&path("kernel", image)),
            virtio: VirtioConfig { rng: true, ..Default::default() },
        },
        console: false,
        public: false,
        accounting: Detail::Full,
    }
}

fn run_kernel(code: Vec<u8>, vcpus: u32) -> (Vec<Vec<ExitReason>>, Ending) {
    run_logged(&kernel_config(&bzimage(&code), vcpus, "console=ttyS0"))
}

guest!(
    boot_state,
    ".code64",
    // The boot parameters, with the header in them.
    "cmp dword ptr [rsi + 0x202], 0x53726448",
    "jne 9f",
    "mov eax, [rsi + 0x228]", // the command line
    "mov rbx, 0x3d656c6f736e6f63",
    "cmp [rax], rbx",
    "jne 9f",
    "mov eax, [rsi + 0x218]", // the RAM disk
    "mov rbx, 0x2d2d445254494e49",
    "cmp [rax], rbx",
    "jne 9f",
    "cmp dword ptr [rsi + 0x21c], 16",
    "jne 9f",
    "mov rax, [rsi + 0x70]", // the ACPI tables
    "mov rbx, 0x2052545020445352",
    "cmp [rax], rbx",
    "jne 9f",
    // The segments of the boot protocol, and descriptors that can be loaded again.
    "mov ax, ds",
    "cmp ax, 0x18",
    "jne 9f",
    "mov ss, ax",
    "mov ax, cs",
    "cmp ax, 0x10",
    "jne 9f",
    "push rax",
    "lea rbx, [rip + 2f]",
    "push rbx",
    "retfq",
    "2: pushfq", // interrupts are off
    "pop rax",
    "test eax, 0x200",
    "jnz 9f",
    "mov eax, 0xfee00020", // the local APIC is there
    "cmp dword ptr [rax], 0",
    "jne 9f",
    "mov dx, 0x600",
    "mov al, 0x34",
    "out dx, al",
    "3: jmp 3b",
    "9: ud2",
);

#[test]
fn a_kernel_is_entered_as_the_boot_protocol_has_it() {
    for image in [bzimage(&boot_state()), elf(&boot_state())] {
        let (logs, ending) = run_logged(&kernel_config(&image, 1, "console=ttyS0"));
        assert!(matches!(ending, Ending::PoweredOff), "{ending:?}");
        assert_eq!(logs, [[IoOut]]);
    }
}

guest!(reset_by_acpi, ".code64", "mov dx, 0x602", "mov al, 1", "out dx, al", "2: jmp 2b");
guest!(
    reset_by_i8042,
    ".code64",
    "2: in al, 0x64", // as kernels do: until there is room for a command
    "test al, 2",
    "jnz 2b",
    "mov al, 0xfe",
    "out 0x64, al",
    "2: jmp 2b",
);
guest!(reset_by_triple_fault, ".code64", "ud2");
guest!(
    panic_told,
    ".code64",
    "mov dx, 0x505",
    "in al, dx",
    "cmp al, 3",
    "jne 9f",
    "mov al, 2", // a kernel for the case is loaded: it would go on
    "out dx, al",
    "mov al, 1",
    "out dx, al",
    "2: jmp 2b",
    "9: ud2",
);

#[test]
fn a_kernel_ends_its_machine_in_four_ways() {
    let reset = |code| match run_kernel(code, 1) {
        (logs, Ending::Reset(reset)) => (logs.concat(), reset),
        (_, ending) => panic!("{ending:?}"),
    };
    assert_eq!(reset(reset_by_acpi()), (vec![IoOut], Reset::Acpi));
    assert_eq!(reset(reset_by_i8042()), (vec![IoIn, IoOut], Reset::I8042));
    let triple_fault = Reset::TripleFault { vcpu: 0 };
    assert_eq!(reset(reset_by_triple_fault()), (vec![Shutdown], triple_fault));
    let (logs, ending) = run_kernel(panic_told(), 1);
    assert!(matches!(ending, Ending::Panicked), "{ending:?}");
    assert_eq!(logs, [[IoIn, IoOut, IoOut]]);
}

guest!(
    warm_reset,
    ".code64",
    "mov word ptr [0x472], 0x1234",
    "mov dx, 0x602",
    "mov al, 1",
    "out dx, al",
    "2: jmp 2b",
);

/// What becomes of a kernel with this command line.
fn outcome_of(code: Vec<u8>, cmdline: &str) -> Outcome {
    let config = kernel_config(&bzimage(&code), 1, cmdline);
    let mut running = make(&config).unwrap().start().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !running.lifecycle().is_stopping() {
        assert!(Instant::now() < deadline, "the guest does not end");
        thread::sleep(Duration::from_millis(1));
    }
    running.stop();
    outcome(&running, None)
}

#[test]
fn a_reset_is_a_panic_if_the_kernel_was_asked_to_tell_and_does() {
    let panicked = Outcome::Crashed("its kernel panicked".into());
    assert_eq!(outcome_of(warm_reset(), "reboot=panic_warm"), panicked);
    assert_eq!(outcome_of(reset_by_acpi(), "reboot=panic_warm"), Outcome::Status(0));
    assert_eq!(outcome_of(warm_reset(), "reboot=warm"), Outcome::Status(0));
    assert_eq!(outcome_of(panic_told(), "reboot=warm"), panicked);
    let reset = outcome_of(reset_by_triple_fault(), "reboot=panic_warm");
    assert_eq!(reset, Outcome::TripleFault { vcpu: 0 });
}

guest!(
    starts_others,
    ".code64",
    // A page for the others' code.
    "lea rsi, [rip + 5f]",
    "mov edi, 0x10000",
    "mov ecx, 64",
    "rep movsb",
    // INIT, then SIPI with that page, to all others.
    "mov ebx, 0xfee00300",
    "mov dword ptr [rbx], 0x000c4500",
    "mov dword ptr [rbx], 0x000c4610",
    "2: cmp word ptr [0x30000], 3",
    "jne 2b",
    "mov dx, 0x600",
    "mov al, 0x34",
    "out dx, al",
    "3: jmp 3b",
    ".code16",
    // They start in real mode. Each makes an exit and goes to sleep.
    "5: out 0x80, al",
    "mov ax, 0x3000",
    "mov ds, ax",
    "lock inc word ptr ds:[0]",
    "6: hlt",
    "jmp 6b",
);

#[test]
fn other_vcpus_wait_until_they_are_started() {
    let (logs, ending) = run_kernel(starts_others(), 4);
    assert!(matches!(ending, Ending::PoweredOff), "{ending:?}");
    assert_eq!(logs[0], [IoOut]);
    for log in &logs[1..] {
        // KVM_RUN says that they are started now; they are asleep, and kicked, when the machine ends.
        let exits: Vec<_> = log.iter().copied().filter(|exit| *exit != Intr).collect();
        assert!(matches!(&exits[..], [Again, .., IoOut]), "{log:?}");
    }
}

guest!(halts, ".code64", "2: hlt", "jmp 2b");

#[test]
fn vcpus_that_halt_or_were_never_started_are_stopped_promptly() {
    let config = kernel_config(&bzimage(&halts()), 64, "");
    stops_promptly(make(&config).unwrap().start().unwrap());
}

guest!(
    serial_interrupt,
    ".code64",
    // Pin 4 of the I/O APIC is vector 0x40 of this CPU, whose APIC is on.
    "mov ebx, 0xfec00000",
    "mov dword ptr [rbx], 0x18",
    "mov dword ptr [rbx + 16], 0x40",
    "mov dword ptr [rbx], 0x19",
    "mov dword ptr [rbx + 16], 0",
    "mov ebx, 0xfee00000",
    "mov dword ptr [rbx + 0xf0], 0x1ff",
    // Nothing is pending. Then the UART is to interrupt when it can transmit, which it can.
    "test dword ptr [rbx + 0x220], 1",
    "jnz 9f",
    "mov dx, 0x3f9",
    "mov al, 2",
    "out dx, al",
    "2: test dword ptr [rbx + 0x220], 1",
    "jz 2b",
    "mov dx, 0x600",
    "mov al, 0x34",
    "out dx, al",
    "3: jmp 3b",
    "9: ud2",
);

#[test]
fn the_serial_port_interrupts() {
    let (_, ending) = run_kernel(serial_interrupt(), 1);
    assert!(matches!(ending, Ending::PoweredOff), "{ending:?}");
}

#[test]
fn a_machine_with_a_kernel_is_dropped_in_every_state() {
    drop(make(&kernel_config(&bzimage(&halts()), 2, "")).unwrap());
    drop(make(&kernel_config(&bzimage(&halts()), 2, "")).unwrap().start().unwrap());
}

#[test]
fn memory_that_is_too_small_for_the_kernel_is_told() {
    let mut config = kernel_config(&bzimage(&halts()), 1, "");
    config.memory = 2 << 20;
    let error = make(&config).err().expect("it is refused").to_string();
    assert!(error.contains("needs 3 MiB") && error.contains("--memory"), "{error}");
}
