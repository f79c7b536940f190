//! The command itself, as it is typed: what it says to people and to programs, what it refuses to begin, and a
//! program that finds its server.

#[path = "support/clients.rs"]
mod clients;
#[path = "support/server.rs"]
mod server;
mod support;

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use clients::{A, Hostile, Machine, PUBLISHERS, as_user, for_users};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use server::Server;
use statsfs::host::server::{ClientState, RefusedFor, Status};
use statsfs::host::{PublishState, SOCKET_VARIABLE};
use support::until;

fn statsfs(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_statsfs"));
    command.args(args).env_remove(SOCKET_VARIABLE);
    command
}

/// What a command says that succeeds and complains about nothing.
fn said(mut command: Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let complaints = String::from_utf8(stderr).unwrap();
    assert!(status.success() && complaints.is_empty(), "{status}: {complaints}");
    String::from_utf8(stdout).unwrap()
}

#[test]
fn root_is_told_of_limits_that_have_been_reached() {
    let server = Server::with(&["--max-connections", "1"]);
    let one = Machine::published(&server, "one", true);
    // Whoever publishes is refused all the same, and told why.
    let other = Machine::new(&server, "other", true);
    let state = other.publisher.wait_tried(support::PATIENCE);
    let PublishState::Refused { reason, again: true } = state else { panic!("{state:?}") };
    assert!(reason.contains("the limit of 1 connections"), "{reason}");
    // Nor is one a client that has not said yet that it wants to publish, as the other does again and again.
    let silent = Hostile::connect(&server);
    for _ in 0..20 {
        let status = server.status();
        assert_eq!((status.clients.len(), status.used.connections), (1, 1));
        assert!(status.refused.iter().any(|refusal| refusal.text == reason), "{status:?}");
    }
    drop((one, other, silent));
}

#[test]
fn status_is_told_to_people_and_to_programs() {
    let server = for_users(&[]);
    let socket = server.socket();
    let socket = socket.to_str().unwrap();
    let text = || said(statsfs(&["status", "--socket", socket]));
    assert!(text().contains("Nobody publishes."), "{}", text());
    assert!(!text().contains("Refused"), "{}", text());

    let _one = Machine::published(&server, "one", true);
    let reason = as_user(A, A, &[PUBLISHERS], || {
        let hostile = Hostile::connect(&server);
        // A pipe is no segment.
        let (pipe, _) = nix::unistd::pipe().unwrap();
        hostile.hello(1, &[std::os::fd::AsFd::as_fd(&pipe)]);
        hostile.refusal()
    });
    assert!(reason.contains("segment"), "{reason}");
    let pid = std::process::id();

    let for_people = text();
    let lines: Vec<_> = for_people.lines().collect();
    for (what, shown) in
        [("server", format!("process {}, for ", server.pid())), ("socket", socket.to_owned())]
    {
        let is_it = |line: &&&str| line.starts_with(what) && line.contains(&shown);
        assert!(lines.iter().any(|line| is_it(&line)), "no {what} {shown} in {for_people}");
    }
    let heading = lines.iter().position(|line| line.trim_start().starts_with("PID")).unwrap();
    let row: Vec<_> = lines[heading + 1].split_whitespace().collect();
    assert_eq!(row[..3], [&*pid.to_string(), "0", "published"], "{for_people}");
    let refused = lines.iter().position(|line| line.starts_with("Refused")).unwrap();
    let expected = format!("ago  process {pid}, user {A}: {reason}");
    assert_eq!(lines.len(), refused + 2, "{for_people}");
    assert!(lines[refused + 1].ends_with(&expected), "{for_people}");

    // The same to programs; the server is where the variable says.
    let mut command = statsfs(&["status", "--json"]);
    command.env(SOCKET_VARIABLE, socket);
    let json = said(command);
    let status: Status = serde_json::from_str(&json).unwrap_or_else(|e| panic!("{e}: {json}"));
    assert_eq!((status.pid as i32, status.socket.to_str()), (server.pid(), Some(socket)));
    let [client] = &status.clients[..] else { panic!("{json}") };
    assert_eq!((client.pid, client.uid, client.state), (pid, 0, ClientState::Published));
    let [refusal] = &status.refused[..] else { panic!("{json}") };
    assert_eq!((refusal.pid, refusal.uid, refusal.reason), (pid, A, RefusedFor::Segment));
    assert_eq!(refusal.text, reason);
}

#[test]
fn status_without_a_server_says_where_it_looked() {
    let nowhere = tempfile::tempdir().unwrap();
    let socket = nowhere.path().join("socket");
    let output = statsfs(&["status", "--socket", socket.to_str().unwrap()]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), &*output.stdout), (Some(1), &b""[..]), "{stderr}");
    assert!(stderr.lines().count() == 1 && stderr.contains(socket.to_str().unwrap()), "{stderr}");
    assert!(stderr.contains("statsfs serve"), "it says what to do: {stderr}");
}

/// A file system of somebody else's, until it is dropped.
struct Foreign<'a>(&'a Path);

impl<'a> Foreign<'a> {
    fn mount(at: &'a Path) -> Self {
        let none: Option<&str> = None;
        mount(Some("other"), at, Some("tmpfs"), MsFlags::empty(), none).unwrap();
        Self(at)
    }
}

impl Drop for Foreign<'_> {
    fn drop(&mut self) {
        let _ = umount2(self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_place_where_something_else_is_mounted_is_left_alone() {
    let directory = tempfile::Builder::new().prefix("statsfs-test-").tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::create_dir(at("mount")).unwrap();
    let mount = at("mount");
    let foreign = Foreign::mount(&mount);
    let mut command = statsfs(&["serve"]);
    for name in ["mount", "socket", "state"] {
        command.arg(format!("--{name}")).arg(at(name));
    }
    let serve = || {
        let output = command.output().unwrap();
        (output.status, String::from_utf8(output.stderr).unwrap())
    };
    let mut serve = serve;
    for is_empty in [true, false] {
        if !is_empty {
            std::fs::write(at("mount/theirs"), "as it was").unwrap();
        }
        let (status, stderr) = serve();
        assert_eq!((status.code(), status.signal()), (Some(1), None), "{stderr}");
        let last = stderr.lines().last().unwrap_or_default();
        for part in ["tmpfs", mount.to_str().unwrap()] {
            assert!(last.contains(part), "no {part} in {stderr}");
        }
        assert!(!at("socket").exists(), "nobody is to come to a server that there is not");
    }
    assert_eq!(std::fs::read_to_string(at("mount/theirs")).unwrap(), "as it was");
    drop(foreign);
    assert!(umount2(&mount, MntFlags::MNT_DETACH).is_err(), "nothing is below or above it");
}

/// A program that cargo builds for the tests of this package, beside them.
fn example(name: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).unwrap().join("examples").join(name);
    assert!(path.is_file(), "{}: `cargo build -p statsfs --examples`", path.display());
    Command::new(path)
}

#[test]
fn the_example_of_a_daemon_publishes_to_the_server_that_the_variable_names() {
    let server = Server::start();
    let mut daemon = example("daemon")
        .env(SOCKET_VARIABLE, server.socket())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(daemon.stdout.take().unwrap()).lines();
    let mut line = || out.next().expect("it says something").unwrap();
    let (mount, pid) = (server.mount(), daemon.id());
    let place = format!("{}/jobs/{pid}-worker0", mount.display());
    assert_eq!(line(), format!("see {place}"));
    assert_eq!(line(), "press Enter to end");
    for n in 0..2 {
        let jobs = format!("jobs/{pid}-worker{n}/worker_jobs");
        until(&jobs, || server.try_number(&jobs).is_ok_and(|jobs| jobs > 0));
    }
    // The end of its input ends it, and what it did stays.
    drop(daemon.stdin.take());
    assert!(daemon.wait().unwrap().success());
    until("it has left", || server.status().clients.is_empty());
    assert!(!Path::new(&place).exists());
    let jobs = server.number("jobs/worker_jobs");
    assert!(jobs > 0);
    assert_eq!(server.number("jobs/.departed/worker_jobs"), jobs);
}
