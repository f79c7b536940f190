//! `vmm demo`: its table comes from the mount that everyone can read meanwhile, and nothing is left of it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;
use tests::flat::Flat;
use tests::guest::{Mode, NO_PORT, Op, Step, end, park};
use tests::host::Host;
use tests::namespace::{self, mounted_at, private};
use tests::running::wait_until;
use tests::vmm::{Vmm, end_with_test, require_host};
use tests::{binary, tracepoint};

/// A demo with its own place. Dropping it ends it and takes its mount away.
struct Demo {
    place: TempDir,
    child: Child,
}

impl Demo {
    fn start(args: &[&str], stdout: Stdio) -> Self {
        require_host();
        let place = tempfile::tempdir().unwrap();
        let mut command = Command::new(binary::vmm());
        command.arg("demo").args(args).arg("--mount").arg(place.path().join("stats"));
        Self::spawn(place, command, stdout)
    }

    /// One that publishes to a server, and has a place where it could mount by itself.
    fn published_to(host: &Host, args: &[&str]) -> Self {
        let place = tempfile::tempdir().unwrap();
        let mut command = Command::new(binary::vmm());
        command.arg("demo").args(args).arg("--socket").arg(host.socket());
        Self::spawn(place, command, Stdio::piped())
    }

    fn spawn(place: TempDir, mut command: Command, stdout: Stdio) -> Self {
        command.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped());
        end_with_test(&mut command);
        Self { child: command.spawn().unwrap(), place }
    }

    fn mount(&self) -> std::path::PathBuf {
        self.place.path().join("stats")
    }

    fn signal(&self, signal: i32) {
        // SAFETY: the child has not been waited for, so the id is still its own.
        assert_eq!(unsafe { libc::kill(self.child.id() as libc::pid_t, signal) }, 0);
    }

    /// Waits for its end; it left nothing and said nothing.
    fn wait(&mut self) -> Option<i32> {
        let status = wait_until("the demo's end", || self.child.try_wait().unwrap());
        let mut stderr = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!(stderr, "");
        assert!(mounted_at(&self.mount()).is_empty() && !self.mount().exists());
        status.code()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let mount = self.place.path().join("stats");
        while !mounted_at(&mount).is_empty() && namespace::unmount(&mount).is_ok() {}
    }
}

/// A line of a table by its guest and vCPU: rate, exits, and the exits by reason. The two times, which
/// have units, are left out.
fn row(text: &str, guest: &str, vcpu: &str) -> Option<Vec<u64>> {
    let line = text.lines().rev().find(|line| {
        let mut fields = line.split_whitespace();
        fields.next() == Some(guest) && (vcpu.is_empty() || fields.next() == Some(vcpu))
    })?;
    Some(line.split_whitespace().filter_map(|field| field.parse().ok()).collect())
}

#[test]
fn quiet_and_no_terminal() {
    let kernel = tracepoint::KvmReturns::watch(&[]);
    let args = ["--seconds", "2", "--quiet", "--guests", "2", "--vcpus", "2"];
    let mut demo = Demo::start(&args, Stdio::piped());
    let mount = demo.mount();
    let mut out = BufReader::new(demo.child.stdout.take().unwrap());
    let mut first = String::new();
    out.read_line(&mut first).unwrap();
    assert!(first.contains(mount.to_str().unwrap()), "it says where: {first}");
    // Meanwhile anyone can read.
    let flat = Flat::read(&mount.join(".stats/flat"));
    let machines: Vec<_> =
        flat.directories("kvm").into_iter().filter(|name| name.contains("-demo")).collect();
    let pid = demo.child.id();
    assert_eq!(machines, [format!("{pid}-demo0"), format!("{pid}-demo1")]);
    for machine in &machines {
        let vcpus = flat.vcpus(&format!("kvm/{machine}"));
        assert_eq!(vcpus.len(), 2);
        vcpus.iter().for_each(|vcpu| flat.assert_balanced(vcpu));
    }
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!(demo.wait(), Some(0));

    let text = first + &rest;
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "no control codes: {text:?}");
    assert_eq!(text.matches("GUEST").count(), 1, "no table but the last: {text}");
    assert!(text.contains("Totals"), "{text}");
    // The totals add up: over reasons, vCPUs and guests; and the kernel saw as many.
    let of = |guest: &str, vcpu: &str| row(&text, guest, vcpu).unwrap_or_else(|| panic!("{text}"));
    let mut sums = [0; 2];
    for (guest, sum) in ["demo0", "demo1"].into_iter().zip(&mut sums) {
        let rows = [of(guest, "0"), of(guest, "1"), of(guest, "all")];
        for row in &rows {
            assert_eq!(row[row.len() - 7], row[row.len() - 6..].iter().sum::<u64>(), "{text}");
        }
        let each = [exits(&text, guest, "0"), exits(&text, guest, "1")];
        *sum = exits(&text, guest, "all");
        assert_eq!(each[0] + each[1], *sum, "{text}");
        assert!(each[0] > 100, "{text}");
    }
    let all = exits(&text, "all", "");
    assert_eq!((all, all), (sums[0] + sums[1], kernel.all()), "{text}");
}

/// The exits of a guest, of all vCPUs or one, as the last table has them.
fn exits(text: &str, guest: &str, vcpu: &str) -> u64 {
    let row = row(text, guest, vcpu).unwrap_or_else(|| panic!("no {guest} {vcpu}: {text}"));
    row[row.len() - 7]
}

/// Where a process sees statistics mounted.
fn statsfs_mounts(process: &str) -> Vec<String> {
    let table = std::fs::read_to_string(format!("/proc/{process}/mountinfo")).unwrap();
    let ours = table.lines().filter(|line| line.contains(" - fuse.statsfs "));
    ours.map(|line| line.split(' ').nth(4).unwrap().to_owned()).collect()
}

#[test]
fn with_a_server_it_reads_the_hosts_mount_and_mounts_nothing() {
    let host = Host::start();
    private(|| {
        // Somebody else's guest is in the totals of the host, and in none of the demo's.
        let steps = [Step::new(Op::In8, 1000, NO_PORT), park(), end(0)];
        let mut other = Vmm::new(Mode::Long, &steps)
            .args(["--memory", "2M"])
            .published_to(&host)
            .blocked_console()
            .start();
        let others = format!("{}/user_exit_io_in", other.machine());
        wait_until("the other guest", || (host.value(&others) == Some(1000)).then_some(()));
        // Nobody else mounts anything in here, and it goes on until it is told.
        let mounts_before = statsfs_mounts("thread-self");
        let args = ["--seconds", "0", "--quiet", "--guests", "2", "--vcpus", "2"];
        let mut demo = Demo::published_to(&host, &args);
        let pid = demo.child.id();
        let mut out = BufReader::new(demo.child.stdout.take().unwrap());
        let mut first = String::new();
        out.read_line(&mut first).unwrap();
        assert!(
            first.trim_end().ends_with(host.mount().to_str().unwrap()),
            "it says where: {first}"
        );
        let machines = [0, 1].map(|n| format!("kvm/{pid}-demo{n}"));
        for machine in &machines {
            let exits = format!("{machine}/user_exits");
            wait_until("exits", || host.value(&exits).filter(|exits| *exits > 100));
        }
        assert_eq!(statsfs_mounts(&pid.to_string()), mounts_before);
        let running =
            std::fs::read_to_string(host.mount().join("by-name/demo0/user_exits")).unwrap();
        assert!(running.trim().parse::<u64>().unwrap() > 0);

        demo.signal(libc::SIGINT);
        let mut rest = String::new();
        out.read_to_string(&mut rest).unwrap();
        assert_eq!(demo.wait(), Some(0));
        let text = first + &rest;
        // What it has read from the host's mount is what stays there.
        let totals = exits(&text, "demo0", "all") + exits(&text, "demo1", "all");
        assert!(row(&text, "all", "").is_none(), "what others' guests did is none of it: {text}");
        wait_until("it has left", || (host.machines() == [other.machine()]).then_some(()));
        wait_until("what it counted is kept", || {
            (host.value("kvm/.departed/user_exits") == Some(totals)).then_some(())
        });
        let of_other = host.value(&format!("{}/user_exits", other.machine())).unwrap();
        assert_eq!(host.value("kvm/user_exits"), Some(totals + of_other));
        other.release();
        other.wait().assert(0);
    });
}

#[test]
fn a_server_that_is_killed_and_started_again_ends_no_demo() {
    let mut host = Host::start();
    let mut demo = Demo::published_to(&host, &["--seconds", "0", "--guests", "1"]);
    let exits = format!("kvm/{}-demo0/user_exits", demo.child.id());
    let grown = |host: &Host, from: u64| {
        wait_until("exits", || host.value(&exits).filter(|exits| *exits > from))
    };
    let before = grown(&host, 100);
    let mut out = BufReader::new(demo.child.stdout.take().unwrap());
    let table = |out: &mut BufReader<_>| {
        let mut line = String::new();
        while !line.starts_with("GUEST") {
            line.clear();
            assert!(out.read_line(&mut line).unwrap() > 0, "it has ended");
        }
    };
    table(&mut out);
    host.kill();
    // Longer than between two tables.
    thread::sleep(Duration::from_millis(2500));
    assert!(demo.child.try_wait().unwrap().is_none());
    host.start_again();
    grown(&host, before);
    // One may have been made before, and one since.
    table(&mut out);
    table(&mut out);
    demo.signal(libc::SIGINT);
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!(demo.wait(), Some(0));
    assert!(rest.contains("\nTotals after") || rest.starts_with("Totals after"), "{rest}");
}

#[test]
fn tables_without_a_terminal_follow_each_other() {
    let mut demo = Demo::start(&["--seconds", "4", "--guests", "1"], Stdio::piped());
    let mut text = String::new();
    demo.child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(demo.wait(), Some(0));
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "no control codes: {text:?}");
    assert!(text.matches("GUEST").count() >= 3, "{text}");
    for hint in ["ls ", "cat ", "grep -r . ", "echo 0 > "] {
        assert!(text.contains(&format!("{hint}{}", demo.mount().display())), "{hint}: {text}");
    }
}

/// A pseudo terminal of this size: our end, and the end that a program takes for a terminal.
fn terminal(rows: u16, columns: u16) -> (File, OwnedFd) {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    let (mut ours, mut theirs) = (-1, -1);
    // SAFETY: two descriptors to be written, no name, no settings, and a size.
    let opened = unsafe {
        libc::openpty(
            &mut ours,
            &mut theirs,
            std::ptr::null_mut(),
            std::ptr::null(),
            &raw const size,
        )
    };
    assert_eq!(opened, 0, "openpty: {}", io::Error::last_os_error());
    // SAFETY: both are new and nobody else's.
    unsafe {
        // A child that another thread starts must not keep them open.
        for fd in [ours, theirs] {
            libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
        }
        (File::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs))
    }
}

#[test]
fn on_a_terminal_the_table_is_repainted() {
    for columns in [80, 160] {
        let (mut ours, theirs) = terminal(40, columns);
        let mut demo = Demo::start(&["--seconds", "0"], theirs.into());
        let (enough, has_seen_enough) = std::sync::mpsc::channel();
        let reader = thread::spawn(move || {
            let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
            // A terminal that everyone else has closed gives an error.
            while let Ok(n) = ours.read(&mut buffer) {
                text.extend_from_slice(&buffer[..n]);
                if String::from_utf8_lossy(&text).matches("GUEST").count() >= 3 {
                    let _ = enough.send(());
                }
            }
            String::from_utf8(text).unwrap()
        });
        // As long as that takes: three tables come in three seconds, but not on every machine.
        has_seen_enough.recv_timeout(Duration::from_secs(120)).expect("three tables");
        demo.signal(libc::SIGINT);
        assert_eq!(demo.wait(), Some(0));
        let text = reader.join().unwrap();
        assert!(text.contains("\x1b["), "it is repainted in place: {text:?}");
        assert!(text.matches("GUEST").count() >= 3, "{text:?}");
        assert!(text.contains("Totals"), "{text:?}");
        // No line of a table breaks.
        let table = text.lines().filter(|line| line.contains("demo0 ") || line.contains("GUEST"));
        for line in table {
            let plain = plain(line);
            assert!(plain.trim_end().chars().count() <= columns.into(), "{columns}: {plain:?}");
        }
        // Whatever it did to the terminal, it is itself again: colours are off, the cursor is there.
        assert_eq!(text.matches("\x1b[?25l").count(), text.matches("\x1b[?25h").count());
    }
}

/// A line without its control codes.
fn plain(line: &str) -> String {
    let mut plain = String::new();
    let mut rest = line.chars();
    while let Some(c) = rest.next() {
        if c == '\x1b' {
            rest.by_ref().find(|c| c.is_ascii_alphabetic());
        } else if !c.is_control() {
            plain.push(c);
        }
    }
    plain
}

#[test]
fn a_signal_ends_it_with_the_totals() {
    for (seconds, signal, status) in [
        ("0", libc::SIGINT, 0),
        ("60", libc::SIGINT, 130),
        ("0", libc::SIGTERM, 143),
        ("0", libc::SIGQUIT, 131),
    ] {
        let args = ["--seconds", seconds, "--quiet", "--guests", "1", "--vcpus", "1"];
        let mut demo = Demo::start(&args, Stdio::piped());
        let exits = demo.mount().join("kvm/user_exits");
        wait_until("an exit", || {
            std::fs::read_to_string(&exits).is_ok_and(|text| text != "0\n").then_some(())
        });
        demo.signal(signal);
        assert_eq!(demo.wait(), Some(status));
        let mut text = String::new();
        demo.child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        assert!(text.contains("Totals"), "{text}");
    }
}

#[test]
fn a_place_that_is_not_empty_is_refused() {
    let place = tempfile::tempdir().unwrap();
    std::fs::create_dir(place.path().join("other")).unwrap();
    let output = Command::new(binary::vmm())
        .args(["demo", "--seconds", "1", "--mount"])
        .arg(place.path())
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr.lines().count() == 1 && stderr.contains("is not empty"), "{stderr}");
    assert!(Path::new(&place.path().join("other")).is_dir());
}
