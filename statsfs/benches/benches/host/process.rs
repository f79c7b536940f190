//! Other processes: this benchmark itself, started again as a server or as a publisher, and what the kernel says
//! of their memory and time.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use statsfs::fs::MountOptions;
use statsfs::host::server::{ServeOptions, Server};
use statsfs::host::{PublishOptions, ask_status};

use crate::machines::{Machines, Size};

/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(300);

/// How often it is looked for, which costs the server something.
const PAUSE: Duration = Duration::from_millis(10);

/// Waits until something is so, and answers how long that took.
fn until(what: &str, mut is: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !is() {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(PAUSE);
    }
    start.elapsed()
}

/// Runs what another process is to run, if this is one.
pub fn run_as_other() -> bool {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse().expect("a number");
    match args[..] {
        ["serve", directory, threads] => serve(Path::new(directory), number(threads)),
        ["publish", socket, first, machines, vcpus] => {
            let size = Size { machines: number(machines), vcpus: number(vcpus) };
            publish(Path::new(socket), number(first), size);
        }
        _ => return false,
    }
    true
}

/// A host's server, until its input ends.
fn serve(directory: &Path, threads: usize) {
    let mut server = Server::start(ServeOptions {
        mount: directory.join("mount"),
        socket: directory.join("socket"),
        state: directory.join("state"),
        mount_options: MountOptions::new().threads(threads).max_open_bytes(OPEN_BYTES),
        ..ServeOptions::default()
    })
    .unwrap_or_else(|error| panic!("{error}"));
    println!("serving");
    server.run(&std::io::stdin()).unwrap_or_else(|error| panic!("{error}"));
}

/// What open files may hold: the whole tree as text.
const OPEN_BYTES: usize = 1 << 30;

/// Machines that publish once they are told to, until their input ends.
fn publish(socket: &Path, first: usize, size: Size) {
    let machines = Machines::new(first, size);
    let bytes = segment_bytes(&machines);
    println!("{} {bytes}", machines.exits());
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("a line, or the end");
    let options = PublishOptions { socket: Some(socket.into()), ..PublishOptions::default() };
    let published = (!line.is_empty()).then(|| machines.registry.publish(options));
    let _ = std::io::stdin().read(&mut [0]);
    drop(published);
}

/// Bytes of all segments.
pub fn segment_bytes(machines: &Machines) -> u64 {
    let segments = machines.registry.segments().expect("descriptors");
    let file = |fd| std::fs::File::from(fd).metadata().expect("a memfd").len();
    segments.into_iter().map(file).sum()
}

/// A process that this one has started. It ends with its input, when this is dropped.
pub struct Other {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Other {
    fn start(args: &[&str]) -> Self {
        let this = std::env::current_exe().expect("this program");
        let mut child = Command::new(this)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program again");
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        Self { child, input, output }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        let read = self.output.read_line(&mut line);
        assert!(read.is_ok_and(|n| n > 0), "a process has ended: its last words are above");
        line
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Other {
    /// Kills it, and waits until it has ended.
    fn kill(mut self) {
        self.child.kill().expect("it is a child");
        self.child.wait().expect("it is a child");
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.wait();
    }
}

/// A process of machines.
pub struct Publisher {
    other: Other,
    /// Exits of all of them.
    pub exits: u64,
    /// Bytes of its segments.
    pub bytes: u64,
}

impl Publisher {
    /// Has machines made in `processes` processes, together as many as asked for; they are not published yet.
    pub fn start_all(host: &Host, size: Size, processes: usize) -> Vec<Self> {
        let share = |n: usize| size.machines * n / processes;
        let socket = host.socket();
        let start = |n| {
            let (first, next) = (share(n), share(n + 1));
            let numbers = [first, next - first, size.vcpus].map(|n| n.to_string());
            let [first, machines, vcpus] = numbers.each_ref().map(String::as_str);
            Other::start(&["publish", socket.to_str().expect("ASCII"), first, machines, vcpus])
        };
        let others: Vec<_> = (0..processes).map(start).collect();
        let ready = |mut other: Other| {
            let line = other.line();
            let mut numbers = line.split_whitespace().map(|n| n.parse().expect("a number"));
            let mut next = || numbers.next().expect("two numbers");
            let (exits, bytes) = (next(), next());
            Self { other, exits, bytes }
        };
        others.into_iter().map(ready).collect()
    }

    /// Has it publish.
    pub fn publish(&mut self) {
        let input = self.other.input.as_mut().expect("it is open until this is dropped");
        input.write_all(b"\n").expect("it listens");
    }
}

/// A running server.
pub struct Host {
    server: Option<Other>,
    threads: usize,
    directory: tempfile::TempDir,
}

impl Host {
    /// Starts one, with so many threads for requests.
    pub fn start(threads: usize) -> Self {
        let directory = tempfile::Builder::new().prefix("statsfs-bench-").tempdir().expect("/tmp");
        let mut host = Self { server: None, threads, directory };
        host.start_again();
        host
    }

    /// Starts it again after it was killed.
    pub fn start_again(&mut self) {
        let at = self.directory.path().to_str().expect("ASCII");
        let mut server = Other::start(&["serve", at, &self.threads.to_string()]);
        assert_eq!(server.line(), "serving\n");
        self.server = Some(server);
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.server.take().expect("it runs").kill();
    }

    pub fn pid(&self) -> u32 {
        self.server.as_ref().expect("it runs").pid()
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// A path in its mount.
    pub fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join("mount").join(path)
    }

    /// What a file says; `None` if it is not there.
    pub fn number(&self, path: &str) -> Option<u64> {
        std::fs::read_to_string(self.path(path)).ok()?.trim().parse().ok()
    }

    /// Waits until all of this is counted, and answers how long that took.
    pub fn wait_counted(&self, exits: u64) -> Duration {
        until("the total of all", || self.number("kvm/user_exits") == Some(exits))
    }

    /// Waits until somebody's counts are there, as after it was started again.
    pub fn wait_published(&self) {
        until("somebody", || self.number("kvm/user_exits").is_some_and(|exits| exits > 0));
    }

    /// Waits until nobody is connected, and what they counted is kept.
    pub fn wait_left(&self) -> Duration {
        until("the end of all clients", || {
            let status = ask_status(&self.socket(), PATIENCE).unwrap_or_else(|e| panic!("{e}"));
            status.contains("\"clients\":[]")
        })
    }

    pub fn memory(&self) -> Memory {
        Memory::of(self.pid())
    }

    /// The processor time that its threads have used.
    pub fn time(&self) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("it runs");
        let of = |task: std::fs::DirEntry| -> u64 {
            let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            text.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0)
        };
        Duration::from_nanos(tasks.flatten().map(of).sum())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // It unmounts before its directory goes.
        drop(self.server.take());
    }
}

/// What a process has in memory, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Of its own: heap and stacks.
    pub own: u64,
    /// Pages of segments, which are their writers' and are there once for all.
    pub shared: u64,
    /// Pages of segments, each divided by the number of processes that have it mapped.
    pub shared_pss: u64,
}

impl Memory {
    fn of(pid: u32) -> Self {
        let kib = |file: &str, key: &str| {
            let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).expect("it runs");
            let line = text.lines().find_map(|line| line.strip_prefix(key));
            let number = line.and_then(|line| line.split_whitespace().next());
            number.and_then(|number| number.parse::<u64>().ok()).map_or(0, |kib| kib << 10)
        };
        Self {
            own: kib("status", "RssAnon:"),
            shared: kib("status", "RssShmem:"),
            shared_pss: kib("smaps_rollup", "Pss_Shmem:"),
        }
    }
}
