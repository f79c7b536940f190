//! What accounting and the policies for system calls cost where they are used: a real guest's exits on
//! `/dev/kvm` with accounting off, of counts, and of counts and times, and without policies; and how long it
//! takes from the start of the VMM to the guest's first instruction.
//!
//! `cargo bench -p vmm --bench guest [-- --quick --json]`; needs `/dev/kvm`.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use statsfs_benches::{Comparison, Options};

const VMM: &str = env!("CARGO_BIN_EXE_vmm");

/// Writes `exits` bytes to a port that nothing claims, then ends the guest with status 0.
fn exits(exits: u32) -> Vec<u8> {
    let mut code = vec![0xb9]; // mov ecx, exits
    code.extend(exits.to_le_bytes());
    code.extend([
        0xe6, 0x80, // 1: out 0x80, al
        0xff, 0xc9, // dec ecx
        0x75, 0xfa, // jnz 1b
        0x30, 0xc0, // xor al, al
        0xe6, 0xf4, // out 0xf4, al
    ]);
    code
}

/// Writes a byte to the serial port first of all, then ends the guest with status 0.
const HELLO: [u8; 11] = [
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, b'!', // mov al, '!'
    0xee, // out dx, al
    0x30, 0xc0, // xor al, al
    0xe6, 0xf4, // out 0xf4, al
];

struct Program(tempfile::NamedTempFile);

impl Program {
    fn new(code: &[u8]) -> Self {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(code).expect("room for a program");
        Self(file)
    }

    fn run(&self, accounting: &str) -> Command {
        let path: PathBuf = self.0.path().into();
        let mut command = Command::new(VMM);
        command.args(["run", "--no-publish", "--accounting", accounting, "--flat"]).arg(path);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command
    }
}

/// Runs a command to its end.
fn whole(command: &mut Command) -> Duration {
    let start = Instant::now();
    let status = command.stdout(Stdio::null()).status().expect("the command starts");
    assert!(status.success(), "{command:?}: {status}");
    start.elapsed()
}

/// From before the command starts to the first byte of its output.
fn first_byte(command: &mut Command) -> Duration {
    let start = Instant::now();
    let mut child = command.spawn().expect("the command starts");
    let mut byte = [0];
    let output = child.stdout.as_mut().expect("it is piped");
    output.read_exact(&mut byte).expect("the command writes a byte");
    let time = start.elapsed();
    assert!(child.wait().expect("the command ends").success());
    time
}

/// The time of `n` runs.
fn times(n: u64, mut one: impl FnMut() -> Duration) -> Duration {
    (0..n).map(|_| one()).sum()
}

fn main() {
    let options = Options::from_args();
    let each = if options.quick { 1000 } else { 10_000 };
    options.say(format_args!("A guest of {each} exits; a whole run of the VMM each."));
    let program = Program::new(&exits(each));
    let mut c = Comparison::new("A guest of many exits, from start to end");
    c.case("accounting off", |n| times(n, || whole(&mut program.run("off"))));
    c.case("the same again", |n| times(n, || whole(&mut program.run("off"))));
    c.case("counts", |n| times(n, || whole(&mut program.run("counts"))));
    c.case("counts and times", |n| times(n, || whole(&mut program.run("full"))));
    c.run(options);

    let mut c = Comparison::new("The same, by which system calls the VMM may make");
    c.case("any (--no-seccomp)", |n| times(n, || whole(program.run("full").arg("--no-seccomp"))));
    c.case("the same again", |n| times(n, || whole(program.run("full").arg("--no-seccomp"))));
    c.case("those that it needs", |n| times(n, || whole(&mut program.run("full"))));
    c.run(options);

    let hello = Program::new(&HELLO);
    let mut c = Comparison::new("From exec to the first byte");
    c.case("echo, a program that does nothing else", |n| {
        times(n, || first_byte(Command::new("echo").arg("!").stdout(Stdio::piped())))
    });
    c.case("a guest's first instruction, seen through COM1", |n| {
        times(n, || first_byte(&mut hello.run("full")))
    });
    c.budget_extra(20e6);
    c.case("... that may make any system call", |n| {
        times(n, || first_byte(hello.run("full").arg("--no-seccomp")))
    });
    c.run(options);
}
