//! Compiled code, decoded from this very process: what an increment really is.

use iced_x86::{
    Decoder, DecoderOptions, Formatter, Instruction, InstructionInfoFactory, IntelFormatter,
    Mnemonic, OpAccess,
};

/// Longest function that is decoded, in bytes.
const LONGEST: usize = 512;

/// The code of one function, up to the return that ends it.
pub struct Listing {
    instructions: Vec<Instruction>,
}

impl Listing {
    /// Decodes the function that begins at `start`.
    ///
    /// # Panics
    /// If it does not end within [`LONGEST`] bytes.
    pub fn of(start: *const ()) -> Self {
        // SAFETY: `start` is a function of this program's text; the benchmark's text goes on for far more
        // than LONGEST bytes behind each of its functions (the Rust runtime follows), and is never written.
        let bytes = unsafe { std::slice::from_raw_parts(start.cast::<u8>(), LONGEST) };
        let mut decoder = Decoder::with_ip(64, bytes, start as usize as u64, DecoderOptions::NONE);
        let mut instructions = Vec::new();
        let mut furthest = 0;
        while decoder.can_decode() {
            let instruction = decoder.decode();
            assert!(!instruction.is_invalid(), "not code at {:#x}", instruction.ip());
            if instruction.is_jcc_short_or_near() || instruction.is_jmp_short_or_near() {
                furthest = furthest.max(instruction.near_branch_target());
            }
            instructions.push(instruction);
            // A return that no jump leads past is the end.
            let ends = matches!(instruction.mnemonic(), Mnemonic::Ret | Mnemonic::Ud2)
                || instruction.is_jmp_short_or_near();
            if ends && furthest < instruction.next_ip() {
                return Self { instructions };
            }
        }
        panic!("no end of the function at {start:?} within {LONGEST} bytes");
    }

    /// Number of instructions.
    pub fn len(&self) -> usize {
        self.instructions.len()
    }

    /// Number of instructions that lock the bus or cache line.
    pub fn locked(&self) -> usize {
        let implied = |i: &Instruction| {
            i.mnemonic() == Mnemonic::Xchg
                && (0..2).any(|n| i.op_kind(n) == iced_x86::OpKind::Memory)
        };
        self.instructions.iter().filter(|i| i.has_lock_prefix() || implied(i)).count()
    }

    /// Number of instructions that store to memory (pushes aside).
    pub fn stores(&self) -> usize {
        let mut factory = InstructionInfoFactory::new();
        self.instructions
            .iter()
            .filter(|i| !matches!(i.mnemonic(), Mnemonic::Push | Mnemonic::Call))
            .filter(|i| {
                factory.info(i).used_memory().iter().any(|m| {
                    matches!(
                        m.access(),
                        OpAccess::Write
                            | OpAccess::ReadWrite
                            | OpAccess::CondWrite
                            | OpAccess::ReadCondWrite
                    )
                })
            })
            .count()
    }

    /// Number of calls: anything that was not inlined.
    pub fn calls(&self) -> usize {
        self.instructions.iter().filter(|i| i.mnemonic() == Mnemonic::Call).count()
    }

    /// The instructions, one a line.
    pub fn lines(&self) -> Vec<String> {
        let mut formatter = IntelFormatter::new();
        formatter.options_mut().set_space_after_operand_separator(true);
        self.instructions
            .iter()
            .map(|instruction| {
                let mut line = String::new();
                formatter.format(instruction, &mut line);
                line
            })
            .collect()
    }
}
