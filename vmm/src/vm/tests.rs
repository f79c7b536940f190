//! Machines on real KVM, seen from inside: what each return of KVM_RUN was, and how the machine ended.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use statsfs::Registry;

use super::*;
use crate::exit::ExitReason::{self, Hlt, Intr, IoIn, IoOut, MmioRead, MmioWrite, Shutdown};
use crate::flat::Entry;
use crate::vcpu::Cause;

/// Assembles guests: `guest!(name, ".code64", "lines" …)` makes a function that returns the bytes.
macro_rules! guest {
    ($name:ident, $($line:literal),+ $(,)?) => {
        std::arch::global_asm!(
            concat!(".pushsection .rodata.test_guest_", stringify!($name), ",\"a\",@progbits"),
            concat!("test_guest_", stringify!($name), "_start:"),
            $($line,)+
            concat!("test_guest_", stringify!($name), "_end:"),
            ".code64",
            ".popsection",
        );
        fn $name() -> Vec<u8> {
            let (start, end): (*const u8, *const u8);
            // SAFETY: two addresses are taken, nothing else happens.
            unsafe {
                std::arch::asm!(
                    concat!("lea {0}, [rip + test_guest_", stringify!($name), "_start]"),
                    concat!("lea {1}, [rip + test_guest_", stringify!($name), "_end]"),
                    out(reg) start, out(reg) end, options(nomem, nostack, preserves_flags),
                );
            }
            // SAFETY: both are labels around one piece of this program's read-only data.
            unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }.to_vec()
        }
    };
}

mod kernel;
mod virtio;

fn config(bytes: Vec<u8>, entry: Entry, vcpus: u32) -> Config {
    Config {
        name: "test".into(),
        memory: 2 << 20,
        vcpus,
        guest: Guest::Flat(FlatProgram { name: "test".into(), bytes, entry }),
        console: false,
        public: false,
        accounting: Detail::Full,
    }
}

struct Log(Vec<ExitReason>);
impl Account for Log {
    fn enter(&mut self) -> u64 {
        0
    }
    fn exit(&mut self, reason: ExitReason) {
        self.0.push(reason);
    }
    fn close(&mut self) -> u64 {
        0
    }
}

fn make(config: &Config) -> Result<Vm, VmError> {
    let hypervisor = Hypervisor::open().expect("these tests need KVM");
    let tree = KvmTree::register(&Registry::new().unwrap()).unwrap();
    Vm::new(&hypervisor, &tree, config, Moment::now())
}

/// Runs a machine to its end: what each vCPU's returns of KVM_RUN were, and the ending.
fn run_logged(config: &Config) -> (Vec<Vec<ExitReason>>, Ending) {
    kick::install_handler().unwrap();
    let Vm { vcpus, machine, .. } = make(config).unwrap();
    let threads: Vec<_> = vcpus
        .into_iter()
        .map(|(vcpu, ..)| {
            let lifecycle = machine.lifecycle.clone();
            thread::spawn(move || {
                let _running = lifecycle.thread();
                let mut log = Log(Vec::new());
                vcpu.run(&mut log);
                log.0
            })
        })
        .collect();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !machine.lifecycle.is_stopping() {
        assert!(Instant::now() < deadline, "the guest does not end");
        thread::sleep(Duration::from_millis(1));
    }
    machine.lifecycle.wait_for_threads(|| threads.iter().for_each(kick::kick));
    let logs = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    let mut lifecycle = Arc::into_inner({
        let Machine { lifecycle, com1, virtio, tree, .. } = machine;
        drop((com1, virtio, tree));
        lifecycle
    });
    let ending = lifecycle.as_mut().and_then(Lifecycle::take_ending).expect("it ended");
    (logs, ending)
}

guest!(
    each_kind,
    ".code64",
    "out 0x80, al", // to no device
    "in al, 0x80",  // all ones
    "cmp al, 0xff",
    "jne 9f",
    "in eax, 0x80",
    "cmp eax, -1",
    "jne 9f",
    "mov ebx, 0xc0000000", // the first address of the gap
    "mov rax, [rbx]",      // all ones
    "cmp rax, -1",
    "jne 9f",
    "mov [rbx + 8], ax",
    "hlt",
    "mov eax, 0x1f", // the last page of memory is memory
    "mov [0x1ffff8], eax",
    "cmp eax, [0x1ffff8]",
    "jne 9f",
    "mov al, 42",
    "out 0xf4, al",
    "9: mov al, 1",
    "out 0xf4, al",
    "jmp 9b",
);

#[test]
fn every_return_of_kvm_run_is_seen_as_what_it_is() {
    let (logs, ending) = run_logged(&config(each_kind(), Entry::Long, 1));
    assert!(matches!(ending, Ending::Exited(42)), "{ending:?}");
    assert_eq!(logs, [[IoOut, IoIn, IoIn, MmioRead, MmioWrite, Hlt, IoOut]]);
}

guest!(
    real_mode,
    ".code16",
    "jmp 3f",
    ".short 0x1234",
    "3: mov ax, cs",
    "cmp ax, 0x1000",
    "jne 9f",
    "call 2f", // the stack is there
    "2: pop ax",
    "mov cx, word ptr ds:[2]", // DS begins at the program
    "cmp cx, 0x1234",
    "jne 9f",
    "mov ax, di", // the index is the status
    "add al, 10",
    "out 0xf4, al",
    "9: mov al, 1",
    "out 0xf4, al",
    "jmp 9b",
);

#[test]
fn real_mode_is_entered_at_1000_0000_with_stack_data_and_index() {
    let (logs, ending) = run_logged(&config(real_mode(), Entry::Real, 1));
    assert!(matches!(ending, Ending::Exited(10)), "{ending:?}");
    assert_eq!(logs, [[IoOut]]);
}

guest!(
    per_vcpu,
    ".code64",
    // Own stack: its end is 0x10000 - index * 0x100.
    "mov rax, rdi",
    "shl rax, 8",
    "add rax, rsp",
    "cmp rax, 0x10000",
    "jne 9f",
    "push rdi",
    // As many port writes as the index says, then wait until all have come here.
    "mov ecx, edi",
    "5: dec ecx",
    "js 2f",
    "out 0x80, al",
    "jmp 5b",
    "2: pop rdi",
    "lock inc dword ptr [0x8000]",
    "3: cmp dword ptr [0x8000], 4",
    "jne 3b",
    "test edi, edi",
    "jnz 4f",
    "mov al, 7",
    "out 0xf4, al",
    "4: jmp 4b",
    "9: mov al, 1",
    "out 0xf4, al",
    "jmp 9b",
);

#[test]
fn every_vcpu_has_its_index_and_stack_and_all_stop_when_one_ends() {
    let (logs, ending) = run_logged(&config(per_vcpu(), Entry::Long, 4));
    assert!(matches!(ending, Ending::Exited(7)), "{ending:?}");
    for (index, log) in logs.iter().enumerate() {
        let count = |reason| log.iter().filter(|r| **r == reason).count();
        assert_eq!(count(IoOut), index + usize::from(index == 0), "vCPU {index}");
        assert_eq!(count(IoOut) + count(Intr), log.len(), "vCPU {index}: {log:?}");
    }
}

guest!(
    strings,
    ".code64",
    "lea rsi, [rip + 8f]",
    "mov dx, 0x3f8",
    "mov ecx, 5",
    "rep outsb",
    "mov edi, 0x9000",
    "mov dx, 0x80",
    "mov ecx, 6",
    "rep insw",
    "mov eax, [0x9008]",
    "cmp eax, -1",
    "jne 9f",
    "mov al, 0",
    "out 0xf4, al",
    "9: mov al, 1",
    "out 0xf4, al",
    "jmp 9b",
    "8: .ascii \"hello\"",
);

#[test]
fn string_instructions_move_all_their_elements() {
    let config = config(strings(), Entry::Long, 1);
    let (logs, ending) = run_logged(&config);
    assert!(matches!(ending, Ending::Exited(0)), "{ending:?}");
    // How KVM batches them is its own business; there is at least one exit for each instruction.
    let count = |reason| logs[0].iter().filter(|r| **r == reason).count();
    assert!((2..=6).contains(&count(IoOut)) && (1..=6).contains(&count(IoIn)), "{logs:?}");
}

guest!(bad_status, ".code64", "mov al, 124", "out 0xf4, al", "2: jmp 2b");

#[test]
fn a_status_that_is_the_vmms_own_is_refused() {
    let (_, ending) = run_logged(&config(bad_status(), Entry::Long, 1));
    assert!(matches!(ending, Ending::BadStatus(124)), "{ending:?}");
}

guest!(triple_fault, ".code64", "hlt", "ud2");

#[test]
fn a_triple_fault_is_told_with_vcpu_and_place() {
    let (logs, ending) = run_logged(&config(triple_fault(), Entry::Long, 1));
    let Ending::Crashed(crash) = ending else { panic!("{ending:?}") };
    assert_eq!((crash.vcpu, &crash.cause), (0, &Cause::TripleFault));
    assert_eq!(logs, [[Hlt, Shutdown]]);
    let text = crash.to_string();
    // Processors of AMD forget the place.
    assert!(text.contains("vCPU 0") && text.contains("RIP 0x") == crash.at.is_some(), "{text}");
}

guest!(
    around_the_gap,
    ".code64",
    "mov ebx, 0xbffffff8", // the last word before the gap
    "mov [rbx], rbx",
    "cmp rbx, [rbx]",
    "jne 9f",
    "mov rax, [rbx + 8]", // the gap
    "cmp rax, -1",
    "jne 9f",
    // Map the level-3 table's fifth entry like the fourth directory, moved up by a gibibyte, to see
    // memory that goes on at 4 GiB.
    "mov eax, 0x100000083",
    "mov [0x3000 + 8], rax", // 2 MiB at 2 MiB -> 4 GiB
    "mov rax, cr3",
    "mov cr3, rax",
    "mov rax, [0x200000]",
    "test rax, rax",
    "jnz 9f",
    "mov [0x200000], rbx",
    "cmp rbx, [0x200000]",
    "jne 9f",
    "mov al, 5",
    "out 0xf4, al",
    "9: mov al, 1",
    "out 0xf4, al",
    "jmp 9b",
);

#[test]
fn memory_goes_on_above_the_gap() {
    let mut config = config(around_the_gap(), Entry::Long, 1);
    config.memory = (3 << 30) + (2 << 20);
    let (logs, ending) = run_logged(&config);
    assert!(matches!(ending, Ending::Exited(5)), "{ending:?} {logs:?}");
    assert_eq!(logs, [[MmioRead, IoOut]]);
}

guest!(for_ever, ".code64", "2: jmp 2b");

/// Stops a machine that runs and does not end by itself.
fn stops_promptly(mut running: RunningVm) {
    thread::sleep(Duration::from_millis(50));
    assert!(running.ending().is_none());
    let (done, waits) = mpsc::channel();
    let stopper = thread::spawn(move || {
        running.stop();
        done.send(()).unwrap();
        running
    });
    waits.recv_timeout(Duration::from_secs(20)).expect("it stops");
    let running = stopper.join().unwrap();
    assert!(matches!(running.ending(), Some(Ending::Stopped)));
}

#[test]
fn a_machine_that_never_exits_is_stopped_promptly() {
    stops_promptly(make(&config(for_ever(), Entry::Long, 8)).unwrap().start().unwrap());
}

#[test]
fn a_machine_is_dropped_in_every_state() {
    drop(make(&config(for_ever(), Entry::Long, 2)).unwrap());
    drop(make(&config(for_ever(), Entry::Real, 2)).unwrap().start().unwrap());
}

#[test]
fn limits_are_named() {
    let error = |change: fn(&mut Config)| {
        let mut config = config(for_ever(), Entry::Long, 1);
        change(&mut config);
        make(&config).err().expect("it is refused").to_string()
    };
    assert!(error(|c| c.vcpus = 0).contains("1 to 64"));
    assert!(error(|c| c.vcpus = 65).contains("1 to 64"));
    assert!(error(|c| c.memory = MIN_MEMORY - 4096).contains("1048576"));
    assert!(error(|c| c.memory = MIN_MEMORY + 1).contains("whole pages"));
    assert!(error(|c| c.memory = MAX_MEMORY + 4096).contains("not 70364449214464"));
    let too_large = |c: &mut Config| *c = config(vec![0; 2 << 20], Entry::Long, 1);
    assert!(error(too_large).contains("--memory"));
}

#[test]
fn sixty_four_vcpus_fit() {
    let (logs, ending) = run_logged(&config(each_kind(), Entry::Long, 64));
    assert!(matches!(ending, Ending::Exited(42)), "{ending:?}");
    assert_eq!(logs.len(), 64);
}

struct Panics;
impl Account for Panics {
    fn enter(&mut self) -> u64 {
        0
    }
    fn exit(&mut self, _: ExitReason) {
        panic!("this panic is part of the test");
    }
    fn close(&mut self) -> u64 {
        0
    }
}

#[test]
fn a_panic_on_a_vcpus_thread_ends_the_machine() {
    kick::install_handler().unwrap();
    let Vm { mut vcpus, machine, .. } = make(&config(each_kind(), Entry::Long, 1)).unwrap();
    let (vcpu, ..) = vcpus.remove(0);
    assert!(thread::spawn(move || vcpu.run(&mut Panics)).join().is_err());
    assert!(machine.lifecycle.is_stopping());
    let Some(Ending::Failed(error)) = machine.lifecycle.ending() else { panic!("it failed") };
    assert!(error.to_string().contains("vCPU 0 panicked"), "{error}");
}
