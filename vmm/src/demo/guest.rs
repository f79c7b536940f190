//! The demo's guest program, assembled by the compiler.

use crate::flat::{Entry, FlatProgram};

std::arch::global_asm!(include_str!("../../../resources/guests/demo.s"));

unsafe extern "C" {
    static vmm_demo_guest_start: u8;
    static vmm_demo_guest_end: u8;
}

/// The program: all kinds of exits at varying rates, for ever.
pub fn program() -> FlatProgram {
    let (start, end) = (&raw const vmm_demo_guest_start, &raw const vmm_demo_guest_end);
    // SAFETY: both are labels around one piece of this program's read-only data.
    let bytes = unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) };
    FlatProgram { name: "demo".to_string(), bytes: bytes.to_vec(), entry: Entry::Long }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_what_the_source_says() {
        let program = program();
        // mov r12, rdi; xor r13d, r13d
        assert_eq!(program.bytes[..6], [0x49, 0x89, 0xfc, 0x45, 0x31, 0xed]);
        // Ends with a short jump back.
        let end = &program.bytes[program.bytes.len() - 2..];
        assert!(end[0] == 0xeb && end[1] >= 0x80, "{end:x?}");
        assert!(program.bytes.len() < 256, "{}", program.bytes.len());
    }
}
