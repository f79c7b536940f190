//! What the integration tests share: they run the `vmm` command on real KVM, with its statistics in a real
//! mount, and compare what the files say with what the guest did and what the kernel saw.
//!
//! * [`binary`] builds the commands that are tested, so that no test ever runs a stale one.
//! * [`guest`] makes guests that do a known number of exits of each kind.
//! * [`linux`] makes guests that run Linux, and [`tap`] their network.
//! * [`vmm`] starts them, [`running`] looks at them, waits for them and cleans up after them, in all cases.
//! * [`flat`] reads the statistics' bulk form.
//! * [`tracepoint`] asks the kernel how often KVM_RUN returned, and why.
//! * [`kvm_stats`] reads what KVM itself counts, from the descriptors that they have of it.
//! * [`memory`] looks what of their memory is not the guest's.
//! * [`host`] is a server that many of them publish to.
//! * [`command`] runs the tools that look at a mount, and takes what they say.
//! * [`http`] asks for what is served to others, and [`prometheus`] is one that collects it.
//! * [`record`] has them record and report, and takes the numbers out of a report; [`chromium`] shows it.
//! * [`screen`] is a terminal for those that fill one.
//! * [`outside`] reads the statistics of a process that is stopped or dead.
//! * [`namespace`] changes a command's view of the machine, and nobody else's.
//! * [`inject`] has a thread of a running `vmm` make a system call, and [`kvm_run`] answers one.
//! * [`fs_matrix`] is what every call and every usual tool makes of a mounted tree.
//! * [`tools`] are what others have to look at statistics with.
//! * [`debs`] are our own packages.
//!
//! * [`nested`] runs tests in a Debian host that is emulated, and [`newc`] packs its file system.
//! * [`packages`] fetches Debian's packages for both.
//!
//! The tests need root, `/dev/kvm` and `/dev/fuse`. What is missing fails the test with the line that fixes
//! it: nothing is ever skipped. `STATSFS_SOAK=N` multiplies counts and rounds by N: [`soak`].

pub mod binary;
pub mod bulk;
pub mod chromium;
pub mod command;
pub mod debs;
pub mod flat;
pub mod fs_matrix;
pub mod guest;
pub mod host;
pub mod http;
pub mod inject;
pub mod kvm_run;
pub mod kvm_stats;
pub mod linux;
pub mod memory;
pub mod namespace;
pub mod nested;
pub mod newc;
pub mod outside;
pub mod packages;
pub mod prometheus;
pub mod record;
pub mod running;
pub mod screen;
pub mod soak;
pub mod stop;
pub mod tap;
pub mod tools;
pub mod tracepoint;
pub mod vmm;

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

#[cfg(test)]
mod tests {
    use crate::soak::scaled;

    #[test]
    fn numbers_and_fractions_multiply() {
        assert_eq!(scaled(300, "1"), Some(300));
        assert_eq!(scaled(300, "10"), Some(3000));
        assert_eq!(scaled(300, "1/5"), Some(60));
        assert_eq!(scaled(300, "10/5"), Some(600));
        assert_eq!(scaled(3, "1/5"), Some(1));
        assert_eq!(scaled(u32::MAX, "2"), Some(u32::MAX));
        for text in ["", "0", "-1", "1.5", "1/0", "0/5", "1/", "/5", "many"] {
            assert_eq!(scaled(300, text), None, "{text:?}");
        }
    }
}
