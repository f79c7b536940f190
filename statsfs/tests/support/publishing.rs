//! Processes that publish, count at random, and keep a ledger in memory that outlives them, as in `host_kill`.
//! A test that starts them has an ignored one called `publishing_process`, which is what they run.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use statsfs::host::protocol::{ClientMessage, Hello, Socket};
use statsfs::host::{PublishOptions, PublishState};
use statsfs::{Registry, RegistryOptions};

use super::server::Server;
use super::support::PATIENCE;
use super::support::child::{self, Shared, Writer};
use super::support::churn::{Churner, Exchange};
use super::support::ledger::{FILES, Ledger, TOPS, Totals, bound};

/// Processes at a time.
pub const AT_ONCE: usize = 8;

/// What a process is told: to say goodbye, and to connect once more beside the connection that it has.
pub const LEAVE: u8 = 1;
pub const AGAIN: u8 = 2;

/// Another connection of this process, with the segments that it has by now.
fn connect_again(registry: &Registry, to: &Path) -> Socket {
    let segments = registry.segments().unwrap();
    let fds: Vec<_> = segments.iter().map(AsFd::as_fd).collect();
    let hello =
        Hello { publisher: registry.publisher(), public: false, segments: fds.len() as u32 };
    let socket = Socket::connect(to).unwrap();
    socket.send(&ClientMessage::Hello(hello), &fds).unwrap();
    socket
}

/// What the process does that [`Publishing`] starts.
pub fn process() {
    let (ledger, mut socket, mode) = child::in_child::<Ledger>();
    let [at, seed, forks, to] = mode.splitn(4, ' ').collect::<Vec<_>>().try_into().unwrap();
    let (at, seed): (usize, u64) = (at.parse().unwrap(), seed.parse().unwrap());
    let options = RegistryOptions { segment_size: 64 << 10, max_segments: 4, ..Default::default() };
    let registry = Registry::with_options(options).unwrap();
    let [kvm, net] = TOPS.map(|name| {
        let top = registry.create_source(name).unwrap();
        top.register().unwrap();
        top
    });
    let vm = registry.source("vm").private().create().unwrap();
    kvm.add_subordinate(&vm).unwrap();
    let pools = [vm, net];
    let exchange: Exchange = Mutex::new(Vec::new());
    let mut churner = Churner::new(0, seed, &registry, &pools, &ledger[at], &exchange);
    let to = PathBuf::from(to);
    let options = PublishOptions { socket: Some(to.clone()), ..PublishOptions::default() };
    let publisher = registry.publish(options).unwrap();
    let state = publisher.wait_tried(PATIENCE);
    assert!(matches!(state, PublishState::Published { .. }), "{state:?}");
    if forks == "1" {
        // A child that holds the connection, and whatever else there is, until it is told to end.
        // SAFETY: the child runs nothing but plain system calls.
        if unsafe { libc::fork() } == 0 {
            // SAFETY: as above. It is not to keep the test's own socket, which tells when this one ended.
            unsafe {
                libc::close(std::os::fd::AsRawFd::as_raw_fd(&socket));
                libc::prctl(libc::PR_SET_PDEATHSIG, 0);
                libc::alarm(5);
                loop {
                    libc::pause();
                }
            }
        }
    }
    child::send_segments(&socket, &registry);
    // Nothing is counted before somebody looks.
    socket.read_exact(&mut [0]).unwrap();
    socket.set_nonblocking(true).unwrap();
    let (mut n, mut told, mut another) = (0u64, [0], None);
    while told != [LEAVE] {
        churner.step();
        n += 1;
        if n.is_multiple_of(32) {
            thread::sleep(Duration::from_millis(2));
            if socket.read_exact(&mut told).is_ok() && told == [AGAIN] {
                another = Some(connect_again(&registry, &to));
            }
        }
    }
    drop(another);
    // It says goodbye, and ends without tidying up.
    drop(publisher);
    std::process::exit(0);
}

/// All totals are these, which segments held.
pub fn are_shown(server: &Server, sums: &Totals, when: &str) {
    for (name, sums) in TOPS.iter().zip(sums) {
        for (file, sum) in FILES.iter().zip(sums) {
            assert_eq!(server.number(&format!("{name}/{file}")), *sum, "{when}: {name}/{file}");
        }
    }
}

/// The same, and that all of it is kept of processes that have left.
pub fn are_kept(server: &Server, sums: &Totals, when: &str) {
    are_shown(server, sums, when);
    for (name, sums) in TOPS.iter().zip(sums) {
        for (file, sum) in FILES.iter().zip(sums) {
            let path = format!("{name}/.departed/{file}");
            assert_eq!(server.number(&path), *sum, "{when}: {path}");
        }
    }
}

/// Totals are within what the ledger allows.
pub fn are_within(ledger: &Ledger, sums: &Totals) {
    for (top, sums) in sums.iter().enumerate() {
        for (file, sum) in sums.iter().enumerate() {
            let (low, high) = (bound(ledger, top, file, false), bound(ledger, top, file, true));
            assert!(low <= *sum && *sum <= high, "{low} ≤ {sum} ≤ {high}");
        }
    }
}

/// A process that publishes, and its segments.
pub struct Publishing {
    pub writer: Writer,
    pub segments: Vec<OwnedFd>,
}

impl Publishing {
    /// Starts one, which is published when this returns.
    pub fn start(
        server: &Server,
        memory: &Shared<Ledger>,
        n: usize,
        seed: u64,
        forks: bool,
    ) -> Self {
        let mode = format!("{n} {seed} {} {}", u8::from(forks), server.socket().display());
        let mut writer = Writer::start("publishing_process", memory, &mode);
        let segments = writer.segments();
        writer.socket.write_all(&[1]).unwrap();
        Self { writer, segments }
    }

    /// Its private directory.
    pub fn directory(&self) -> String {
        format!("kvm/{}-vm", self.writer.pid())
    }

    /// Waits for the end of its own socket, which comes with the end of the one to the server, and then until
    /// its directory is gone; answers how long after it that was.
    pub fn gone(&mut self, server: &Server) -> Duration {
        let mut byte = [0];
        let end = self.writer.socket.read(&mut byte);
        assert!(matches!(end, Ok(0) | Err(_)), "it says nothing");
        let start = Instant::now();
        let directory = server.path(&self.directory());
        while directory.exists() {
            let is_there =
                || format!("{} is still there: {:#?}", directory.display(), server.status());
            assert!(start.elapsed() < PATIENCE, "{}", is_there());
            thread::sleep(Duration::from_micros(200));
        }
        start.elapsed()
    }
}
