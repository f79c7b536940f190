//! What the kernel saw: the tracepoint `kvm:kvm_userspace_exit`, which fires at every return of KVM_RUN
//! with the reason and the error number, and `kvm:kvm_set_irq`, which fires when a line of a guest's interrupt
//! controller changes.
//!
//! Counters are opened by the thread that will start the VMM, for itself and inherited by everything that
//! it starts while they are open, so that no exit can happen before they count. The kernel adds a thread's
//! counts to them before anyone can learn of its end: once a process has been waited for, they are exact.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::Path;
use std::sync::OnceLock;
use std::thread;

use crate::flat::Flat;
use crate::namespace;

/// KVM_EXIT_IO: a port was read or written.
pub const IO: u32 = 2;
/// KVM_EXIT_HLT.
pub const HLT: u32 = 5;
/// KVM_EXIT_MMIO: device memory was read or written.
pub const MMIO: u32 = 6;
/// KVM_EXIT_SHUTDOWN.
pub const SHUTDOWN: u32 = 8;

/// The part of `struct perf_event_attr` that its first version (64 bytes) has.
#[repr(C)]
#[derive(Default)]
struct PerfEventAttr {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    config1: u64,
}

const PERF_TYPE_TRACEPOINT: u32 = 2;
/// The second bit of `flags`.
const INHERIT: u64 = 1 << 1;
/// `_IOW('$', 6, char *)`.
const PERF_EVENT_IOC_SET_FILTER: libc::c_ulong = 0x4008_2406;

/// A tracepoint of KVM's.
#[derive(Debug)]
struct Tracepoint {
    name: &'static str,
    /// Those of its fields that are looked at.
    fields: &'static [&'static str],
    id: OnceLock<u64>,
}

static USERSPACE_EXIT: Tracepoint = Tracepoint::new("kvm_userspace_exit", &["reason", "errno"]);
static SET_IRQ: Tracepoint = Tracepoint::new("kvm_set_irq", &["gsi", "level"]);

impl Tracepoint {
    const fn new(name: &'static str, fields: &'static [&'static str]) -> Self {
        Self { name, fields, id: OnceLock::new() }
    }

    /// Its id, from the tracing file system. That is seldom mounted, so it is mounted for a moment where nobody
    /// else sees it.
    fn id(&'static self) -> u64 {
        *self.id.get_or_init(|| {
            let name = self.name;
            // A thread of its own, so that nothing else of this process moves to the new namespace.
            let read = thread::spawn(|| self.read_id()).join();
            read.expect("the tracepoint is as expected").unwrap_or_else(|error| {
                panic!(
                    "the tracepoint kvm:{name} can not be found ({error}): run the tests as root, on a kernel with \
                     CONFIG_FTRACE, and load KVM (`modprobe kvm_intel` or `modprobe kvm_amd`)"
                )
            })
        })
    }

    fn read_id(&self) -> io::Result<u64> {
        namespace::unshare_mounts()?;
        let directory = tempfile::tempdir()?;
        namespace::mount("tracefs", directory.path(), "tracefs")?;
        let events = directory.path().join("events/kvm").join(self.name);
        let format = std::fs::read_to_string(events.join("format"))?;
        for field in self.fields {
            assert!(
                format.contains(&format!(" {field};")),
                "the tracepoint has changed:\n{format}"
            );
        }
        let id = std::fs::read_to_string(events.join("id"))?;
        namespace::unmount(directory.path())?;
        id.trim().parse().map_err(io::Error::other)
    }
}

/// Whose events are counted.
#[derive(Clone, Copy, Debug)]
enum Scope {
    /// Those of this thread and all that it starts.
    Heirs,
    /// Those of everybody on this CPU, the kernel's own threads as well.
    Cpu(i32),
}

/// Counts a tracepoint's events that a filter lets through.
#[derive(Debug)]
struct Counter(File);

impl Counter {
    /// # Panics
    /// If the kernel does not let us.
    fn open(tracepoint: &'static Tracepoint, scope: Scope, filter: Option<&str>) -> Self {
        Self::try_open(tracepoint, scope, filter).unwrap_or_else(|error| {
            let paranoid = Path::new("/proc/sys/kernel/perf_event_paranoid");
            let paranoid = std::fs::read_to_string(paranoid).unwrap_or_default();
            panic!(
                "perf_event_open of kvm:{}, {scope:?}, filter {filter:?}: {error}: run the tests as root \
                 (kernel.perf_event_paranoid is {})",
                tracepoint.name,
                paranoid.trim()
            )
        })
    }

    fn try_open(
        tracepoint: &'static Tracepoint,
        scope: Scope,
        filter: Option<&str>,
    ) -> io::Result<Self> {
        let (thread, cpu, flags) = match scope {
            Scope::Heirs => (0, -1, INHERIT),
            Scope::Cpu(cpu) => (-1, cpu, 0),
        };
        let attr = PerfEventAttr {
            kind: PERF_TYPE_TRACEPOINT,
            size: size_of::<PerfEventAttr>() as u32,
            config: tracepoint.id(),
            flags,
            ..Default::default()
        };
        const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
        // SAFETY: the structure is as large as it says; no group.
        let fd = unsafe {
            libc::syscall(libc::SYS_perf_event_open, &attr, thread, cpu, -1, PERF_FLAG_FD_CLOEXEC)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        let counter = Self(unsafe { File::from_raw_fd(fd as i32) });
        if let Some(filter) = filter {
            let filter = std::ffi::CString::new(filter)?;
            // SAFETY: an open counter and a string that lives across the call.
            let set = unsafe {
                libc::ioctl(counter.0.as_raw_fd(), PERF_EVENT_IOC_SET_FILTER, filter.as_ptr())
            };
            if set < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(counter)
    }

    fn get(&self) -> u64 {
        let mut bytes = [0; 8];
        (&self.0).read_exact(&mut bytes).expect("a counter can be read");
        u64::from_ne_bytes(bytes)
    }
}

/// How often KVM_RUN returned in what this thread starts from now on.
#[derive(Debug)]
pub struct KvmReturns {
    all: Counter,
    failed: Counter,
    interrupted: Counter,
    reasons: Vec<(u32, Counter)>,
}

impl KvmReturns {
    /// Counts all returns of KVM_RUN, and those with these reasons.
    ///
    /// # Panics
    /// If the kernel does not let us.
    pub fn watch(reasons: &[u32]) -> Self {
        let open = |filter: Option<&str>| Counter::open(&USERSPACE_EXIT, Scope::Heirs, filter);
        Self {
            all: open(None),
            failed: open(Some("errno<0")),
            interrupted: open(Some("errno==-4")),
            reasons: reasons
                .iter()
                // A return that failed carries the reason of some return before.
                .map(|reason| (*reason, open(Some(&format!("reason=={reason} && errno>=0")))))
                .collect(),
        }
    }

    /// Counts all that the VMM tells apart and can lead to on the machines that are tested.
    ///
    /// # Panics
    /// As for [`KvmReturns::watch`].
    pub fn watch_all() -> Self {
        Self::watch(&[IO, HLT, MMIO, SHUTDOWN])
    }

    /// Asserts that a VMM that has been waited for counted as many returns, by reason, as the kernel did.
    ///
    /// # Panics
    /// If it did not.
    #[track_caller]
    pub fn assert_agrees(&self, flat: &Flat) {
        let exits = flat.exits("kvm");
        let of = |reason: &str| exits.get(reason).copied().unwrap_or(0);
        assert_eq!(of("io_in") + of("io_out"), self.with_reason(IO), "io");
        assert_eq!(of("mmio_read") + of("mmio_write"), self.with_reason(MMIO), "mmio");
        assert_eq!(of("hlt"), self.with_reason(HLT), "hlt");
        assert_eq!(of("shutdown"), self.with_reason(SHUTDOWN), "shutdown");
        assert_eq!(of("intr"), self.interrupted(), "intr");
        assert_eq!(of("intr") + of("again") + of("error"), self.failed(), "failed");
        // Whatever it was, it was counted.
        assert_eq!(flat.get("kvm/user_exits"), self.all(), "all returns of KVM_RUN: {exits:?}");
    }

    /// All returns.
    pub fn all(&self) -> u64 {
        self.all.get()
    }

    /// Those with an error.
    pub fn failed(&self) -> u64 {
        self.failed.get()
    }

    /// Those with EINTR.
    pub fn interrupted(&self) -> u64 {
        self.interrupted.get()
    }

    /// Those without an error that have this reason.
    ///
    /// # Panics
    /// If it is not one of those to be watched.
    pub fn with_reason(&self, reason: u32) -> u64 {
        let found = self.reasons.iter().find(|(watched, _)| *watched == reason);
        found.unwrap_or_else(|| panic!("reason {reason} is not watched")).1.get()
    }
}

/// How often lines of guests' interrupt controllers were raised.
#[derive(Debug)]
pub struct KvmInterrupts {
    by_threads: Counter,
    of_line: Vec<Counter>,
}

impl KvmInterrupts {
    /// Counts for what this thread starts from now on, and for one line of all guests.
    ///
    /// # Panics
    /// If the kernel does not let us.
    pub fn watch(gsi: u32) -> Self {
        // SAFETY: no pointer and no effects.
        let cpus = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) } as i32;
        let filter = format!("gsi=={gsi} && level==1");
        let open = |cpu| Counter::open(&SET_IRQ, Scope::Cpu(cpu), Some(&filter));
        Self {
            by_threads: Counter::open(&SET_IRQ, Scope::Heirs, Some("level==1")),
            of_line: (0..cpus).map(open).collect(),
        }
    }

    /// Those of any line that the threads themselves raised, in system calls of theirs.
    pub fn by_threads(&self) -> u64 {
        self.by_threads.get()
    }

    /// Those of the line, of all guests on this machine and whoever raised it.
    pub fn of_line(&self) -> u64 {
        self.of_line.iter().map(Counter::get).sum()
    }
}
