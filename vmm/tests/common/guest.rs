//! Guests in assembly language.

/// Assembles a long-mode guest into a function that returns its bytes.
macro_rules! guest {
    ($name:ident, $($line:literal),+ $(,)?) => {
        std::arch::global_asm!(
            concat!(".pushsection .rodata.run_guest_", stringify!($name), ",\"a\",@progbits"),
            concat!("run_guest_", stringify!($name), "_start:"),
            $($line,)+
            concat!("run_guest_", stringify!($name), "_end:"),
            ".popsection",
        );
        fn $name() -> Vec<u8> {
            let (start, end): (*const u8, *const u8);
            // SAFETY: two addresses are taken, nothing else happens.
            unsafe {
                std::arch::asm!(
                    concat!("lea {0}, [rip + run_guest_", stringify!($name), "_start]"),
                    concat!("lea {1}, [rip + run_guest_", stringify!($name), "_end]"),
                    out(reg) start, out(reg) end, options(nomem, nostack, preserves_flags),
                );
            }
            // SAFETY: both are labels around one piece of this program's read-only data.
            unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }.to_vec()
        }
    };
}
