//! What runs in the host: its first process, which sets it up and powers it off unless systemd does, and the
//! agent, which runs what is planned and reports.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::image::MODULES;
use super::report::{MAX_FILE, Message, Outcome};
use super::{BIN, FILES, KEPT, PLAN, Plan, Planned, ROLE, Role};
use crate::binary;
use crate::namespace::mount;

/// The serial port that reports go to: the second, which nothing else writes to.
const REPORT: &str = "/dev/ttyS1";

/// Where control groups are.
const GROUPS: &str = "/sys/fs/cgroup";

/// Is the first process where it is there.
const SYSTEMD: &str = "/usr/lib/systemd/systemd";

/// The agent's environment.
const ENVIRONMENT: [(&str, &str); 4] = [
    (ROLE, Role::Agent.name()),
    ("PATH", "/usr/bin:/usr/sbin"),
    ("HOME", "/root"),
    (binary::DIRECTORY, BIN),
];

/// The unit of the agent, where there is systemd: it begins early, to say that it is alive, and its end is the host's.
pub(super) fn unit() -> String {
    let environment: String =
        ENVIRONMENT.iter().map(|(name, value)| format!("Environment={name}={value}\n")).collect();
    format!(
        "[Unit]\nDescription=Tests\nDefaultDependencies=no\n\
         SuccessAction=poweroff-immediate\nFailureAction=poweroff-immediate\n\
         [Service]\nExecStart=/init\n{environment}Delegate=yes\n\
         StandardOutput=tty\nStandardError=tty\n"
    )
}

/// The first process: sets the host up, starts the agent, reaps what nobody else does, and powers off. Or, where
/// there is systemd, leaves all that to it.
pub(super) fn init() -> ! {
    if Path::new(SYSTEMD).exists() {
        let failed = load_modules().map(|()| Command::new(SYSTEMD).exec());
        // Which is the end of the host.
        panic!("systemd is not started: {failed:?}");
    }
    let ran = set_up().and_then(|()| {
        let agent = Command::new("/proc/self/exe")
            .env_clear()
            .envs(ENVIRONMENT)
            .stdin(Stdio::null())
            .current_dir("/")
            .spawn()
            .context("the agent can not be started")?;
        // SAFETY: the pointer may be null, which is to say that the status is not wanted. The library's
        // handle of the agent is not used any more.
        while unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) } != agent.id() as libc::pid_t {}
        Ok(())
    });
    if let Err(error) = ran {
        println!("nested: {error:#}");
    }
    // SAFETY: no pointers; file systems in memory have nothing to lose.
    unsafe { libc::reboot(libc::RB_POWER_OFF) };
    unreachable!("a machine with ACPI can be powered off");
}

fn set_up() -> Result<()> {
    for (kind, at) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("devpts", "/dev/pts"),
        ("tmpfs", "/dev/shm"),
        ("tmpfs", "/run"),
        ("debugfs", "/sys/kernel/debug"),
        ("cgroup2", GROUPS),
    ] {
        if !Path::new(at).exists() {
            fs::create_dir(at).with_context(|| at.to_string())?;
        }
        mount(kind, Path::new(at), kind)
            .with_context(|| format!("{kind} can not be mounted at {at}"))?;
    }
    for (link, target) in
        [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")]
    {
        std::os::unix::fs::symlink(target, Path::new("/dev").join(link))?;
    }
    load_modules()?;
    let loopback =
        Command::new("/usr/bin/busybox").args(["ip", "link", "set", "lo", "up"]).status();
    loopback.context("the loop-back interface can not be set up")?;
    Ok(())
}

fn load_modules() -> Result<()> {
    let mut modules: Vec<_> =
        fs::read_dir(MODULES)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    modules.sort();
    for module in modules {
        load(&module).with_context(|| format!("{} can not be loaded", module.display()))?;
    }
    Ok(())
}

fn load(module: &Path) -> Result<()> {
    let file = File::open(module)?;
    let none = CString::default();
    // SAFETY: an open file, and a string that lives across the call.
    let loaded =
        unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), none.as_ptr(), 0) };
    if loaded < 0 {
        return Err(io::Error::last_os_error().into());
    }
    Ok(())
}

/// The way out, for all that report.
struct Report(Mutex<File>);

impl Report {
    fn open() -> Result<Self> {
        let port = File::options().read(true).write(true).open(REPORT).context(REPORT)?;
        // SAFETY: an all-zero structure is a valid value of it, and is written before it is read.
        let mut settings: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: an open terminal, and a structure that lives across the calls.
        let set = unsafe {
            libc::tcgetattr(port.as_raw_fd(), &raw mut settings);
            libc::cfmakeraw(&raw mut settings);
            libc::cfsetspeed(&raw mut settings, libc::B115200);
            libc::tcsetattr(port.as_raw_fd(), libc::TCSANOW, &raw const settings)
        };
        if set < 0 {
            return Err(io::Error::last_os_error()).context(REPORT);
        }
        Ok(Self(Mutex::new(port)))
    }

    fn send(&self, message: &Message) {
        let mut port = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = message.send(&mut *port) {
            // The console is kept, and who waits for reports will look there.
            println!("nested: no report of {message:?}: {error}");
        }
    }
}

/// Runs what is planned.
pub(super) fn run() -> Result<()> {
    let report = Report::open()?;
    report.send(&Message::Up(uptime()?));
    let Plan(plan) = Plan::from_text(&fs::read_to_string(PLAN).context(PLAN)?)?;
    let groups = &own_group()?;
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            for (index, test) in plan.iter().enumerate() {
                run_one(&report, groups, index, test);
            }
        });
        while !worker.is_finished() {
            thread::sleep(Duration::from_secs(1));
            report.send(&Message::Alive);
        }
    });
    report.send(&Message::Done);
    // SAFETY: an open terminal.
    unsafe { libc::tcdrain(report.0.lock().unwrap_or_else(PoisonError::into_inner).as_raw_fd()) };
    Ok(())
}

fn uptime() -> Result<Duration> {
    let text = fs::read_to_string("/proc/uptime")?;
    let seconds = text.split(' ').next().and_then(|word| word.parse().ok());
    Ok(Duration::from_secs_f64(seconds.context("/proc/uptime has changed")?))
}

/// This process's control group. Each test has one below it, so that it can be killed as a whole, whatever it has
/// started.
fn own_group() -> Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup")?;
    let path = text.trim_end().strip_prefix("0::/").context("there is no single hierarchy")?;
    Ok(Path::new(GROUPS).join(path))
}

fn run_one(report: &Report, groups: &Path, index: usize, test: &Planned) {
    report.send(&Message::Begin(test.name.clone()));
    let started = Instant::now();
    let directory = Path::new(FILES).join(&test.name);
    let group = groups.join(format!("test{index}"));
    let ended = start_and_wait(report, test, &directory, &group);
    let took = started.elapsed();
    let outcome = match ended {
        Ok(Some(status)) if status.success() => Outcome::Passed,
        Ok(Some(_)) => Outcome::Failed,
        Ok(None) => Outcome::TimedOut,
        Err(error) => {
            report.send(&Message::Line(format!("{}: {error:#}", test.name)));
            Outcome::Failed
        }
    };
    keep(report, &directory, &test.name);
    report.send(&Message::End(test.name.clone(), outcome, took));
    let _ = fs::remove_dir_all(&directory);
}

/// Runs a test in a control group of its own, and ends all that it started. `None` if it did not end by
/// itself in time.
fn start_and_wait(
    report: &Report,
    test: &Planned,
    directory: &Path,
    group: &Path,
) -> Result<Option<ExitStatus>> {
    fs::create_dir_all(directory).context("its directory")?;
    fs::create_dir(group).context("its control group")?;
    let output = File::create(directory.join("output"))?;
    let (members, errors) =
        (File::options().write(true).open(group.join("cgroup.procs"))?, output.try_clone()?);
    let mut command = Command::new(&test.program);
    command.args(&test.args).env_remove(ROLE).env(KEPT, directory);
    command.envs(test.environment.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(if test.live { Stdio::piped() } else { output.into() });
    command.stderr(errors);
    // SAFETY: both calls are async-signal-safe, and the buffer lives across the write.
    unsafe {
        command.pre_exec(move || {
            libc::setsid();
            // 0 is the process that writes it.
            (&members).write_all(b"0")
        });
    }
    let mut child = command
        .spawn()
        .with_context(|| format!("{} can not be started", test.program.display()))?;
    let reader = child.stdout.take();
    let ended = thread::scope(|scope| -> Result<_> {
        if let Some(stdout) = reader {
            scope.spawn(|| forward(report, stdout));
        }
        let deadline = Instant::now() + test.timeout;
        let ended = loop {
            if let Some(status) = child.try_wait()? {
                break Some(status);
            }
            if Instant::now() > deadline {
                break None;
            }
            thread::sleep(Duration::from_millis(5));
        };
        // Also what it left, which might hold its output open.
        fs::write(group.join("cgroup.kill"), "1")?;
        Ok(ended)
    })?;
    let _ = child.wait();
    // What was killed takes a moment to go.
    let deadline = Instant::now() + Duration::from_secs(10);
    while fs::remove_dir(group).is_err() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
    Ok(ended)
}

/// Passes lines on to the terminal.
fn forward(report: &Report, from: impl Read) {
    for line in io::BufRead::lines(io::BufReader::new(from)).map_while(Result::ok) {
        report.send(&Message::Line(line));
    }
}

/// Sends all files that a test has left in its directory.
fn keep(report: &Report, directory: &Path, name: &str) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths.iter().filter(|path| path.is_file()) {
        let Some(file) = path.file_name().and_then(|file| file.to_str()) else { continue };
        match end_of(path) {
            Ok(bytes) if bytes.is_empty() => {}
            Ok(bytes) => report.send(&Message::File(format!("{name}/{file}"), bytes)),
            Err(error) => report.send(&Message::Line(format!("{}: {error}", path.display()))),
        }
    }
}

/// A file, or as much of its end as can be sent.
fn end_of(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(MAX_FILE as u64)))?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}
