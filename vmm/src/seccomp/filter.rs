//! From rules to the program that the kernel runs before each system call of a thread.

use std::collections::BTreeMap;

use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, Ioctl, c_int, c_long};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, sock_filter,
};

/// A system call that is allowed, whatever its arguments or only with some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    call: c_long,
    /// All of these must hold.
    args: Vec<Arg>,
}

/// What an argument must be. Only its low half is looked at, as the kernel does with those that are tested
/// here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Arg {
    index: u8,
    mask: u32,
    value: u32,
}

/// The call with any arguments.
pub(super) fn any(call: c_long) -> Rule {
    Rule { call, args: Vec::new() }
}

/// The call with arguments like these.
pub(super) fn when<const N: usize>(call: c_long, args: [Arg; N]) -> Rule {
    Rule { call, args: args.to_vec() }
}

/// ioctl(2) with this request, whose type the C libraries do not agree on.
pub(super) fn ioctl(request: Ioctl) -> Rule {
    when(libc::SYS_ioctl, [is(1, request as c_int)])
}

/// Argument `index` is `value`.
pub(super) fn is(index: u8, value: c_int) -> Arg {
    bits(index, !0, value)
}

/// Of argument `index`, these bits are as in `value`.
pub(super) fn bits(index: u8, mask: c_int, value: c_int) -> Arg {
    Arg { index, mask: mask as u32, value: value as u32 }
}

/// Of argument `index`, all these bits are set.
pub(super) fn set(index: u8, mask: c_int) -> Arg {
    bits(index, mask, mask)
}

/// Of argument `index`, none of these bits is set.
pub(super) fn clear(index: u8, mask: c_int) -> Arg {
    bits(index, mask, 0)
}

impl Arg {
    fn condition(self) -> Result<SeccompCondition, BackendError> {
        let Self { index, mask, value } = self;
        let operator = match mask {
            u32::MAX => SeccompCmpOp::Eq,
            mask => SeccompCmpOp::MaskedEq(mask.into()),
        };
        SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value.into())
    }
}

/// The program that allows what the rules say, and sends a SIGSYS for anything else. It looks at the ioctl
/// `first` before all others, if there is one.
///
/// # Errors
/// If the rules make no program, which is a bug.
pub(super) fn compile(rules: &[Rule], first: Option<Ioctl>) -> Result<BpfProgram, BackendError> {
    let mut chains = BTreeMap::<c_long, Vec<SeccompRule>>::new();
    for rule in rules.iter().filter(|rule| !rule.args.is_empty()) {
        let conditions = rule.args.iter().map(|arg| arg.condition()).collect::<Result<_, _>>()?;
        chains.entry(rule.call).or_default().push(SeccompRule::new(conditions)?);
    }
    // No conditions at all is what any arguments are.
    for rule in rules.iter().filter(|rule| rule.args.is_empty()) {
        chains.insert(rule.call, Vec::new());
    }
    let filter =
        SeccompFilter::new(chains, SeccompAction::Trap, SeccompAction::Allow, TargetArch::x86_64)?;
    let rest = BpfProgram::try_from(filter)?;
    Ok(first.map(shortcut).into_iter().flatten().chain(rest).collect())
}

/// Where the kernel puts what a program looks at: `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARG1: u32 = 24;
/// `AUDIT_ARCH_X86_64`: EM_X86_64, 64 bits, little-endian.
const X86_64: u32 = 62 | 0x8000_0000 | 0x4000_0000;

/// Allows one ioctl at once, and goes on behind itself for everything else. The kernel remembers by itself
/// which calls are allowed whatever their arguments; of those that depend on an argument, one is in the exit
/// loop, and would otherwise be looked for behind the tests of all calls with lower numbers.
fn shortcut(request: Ioctl) -> [sock_filter; 7] {
    let load = |k| sock_filter { code: (BPF_LD | BPF_W | BPF_ABS) as u16, jt: 0, jf: 0, k };
    let unless = |k, jf| sock_filter { code: (BPF_JMP | BPF_JEQ | BPF_K) as u16, jt: 0, jf, k };
    let allow = libc::SECCOMP_RET_ALLOW;
    [
        load(ARCH),
        unless(X86_64, 5),
        load(NUMBER),
        unless(libc::SYS_ioctl as u32, 3),
        load(ARG1),
        unless(request as u32, 1),
        sock_filter { code: (BPF_RET | BPF_K) as u16, jt: 0, jf: 0, k: allow },
    ]
}
