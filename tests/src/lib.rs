//! What the integration tests share: they run the `vmm` command on real KVM, with its statistics in a real
//! mount, and compare what the files say with what the guest did and what the kernel saw.
//!
//! * [`binary`] builds the commands that are tested, so that no test ever runs a stale one.
//! * [`guest`] makes guests that do a known number of exits of each kind.
//! * [`vmm`] starts them, [`running`] looks at them, waits for them and cleans up after them, in all cases.
//! * [`flat`] reads the statistics' bulk form.
//! * [`tracepoint`] asks the kernel how often KVM_RUN returned, and why.
//! * [`outside`] reads the statistics of a process that is stopped or dead.
//! * [`namespace`] changes a command's view of the machine, and nobody else's.
//! * [`inject`] has a thread of a running `vmm` make a system call.
//! * [`fs_matrix`] is what every call and every usual tool makes of a mounted tree.
//!
//! The tests need root, `/dev/kvm` and `/dev/fuse`. What is missing fails the test with the line that fixes
//! it: nothing is ever skipped. `STATSFS_SOAK=N` multiplies counts and rounds by N.

pub mod binary;
pub mod flat;
pub mod fs_matrix;
pub mod guest;
pub mod inject;
pub mod namespace;
pub mod outside;
pub mod running;
pub mod tracepoint;
pub mod vmm;

/// How much more than usual to do: what the environment variable `STATSFS_SOAK` says, else 1.
pub fn soak() -> u32 {
    match std::env::var("STATSFS_SOAK") {
        Ok(text) => match text.parse() {
            Ok(n) if n >= 1 => n,
            _ => panic!("STATSFS_SOAK={text:?}: it is a number that rounds are multiplied by"),
        },
        Err(_) => 1,
    }
}

/// A small generator of random numbers, for random moments: xorshift64*, seeded by the time, or by the
/// environment variable `STATSFS_SEED`.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Says its seed on standard error, which is shown when the test fails.
    pub fn new() -> Self {
        let seed = match std::env::var("STATSFS_SEED") {
            Ok(text) => text.parse().expect("STATSFS_SEED is a number"),
            Err(_) => std::time::SystemTime::UNIX_EPOCH
                .elapsed()
                .expect("it is later than 1970")
                .as_nanos() as u64,
        };
        eprintln!("STATSFS_SEED={seed}");
        Self(seed | 1)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % limit
    }
}

impl Default for Random {
    fn default() -> Self {
        Self::new()
    }
}
