//! Commands that look at a mount, and what they say.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use serde_json::Value as Json;

use crate::binary;
use crate::running::wait_until;
use crate::vmm::end_with_test;

/// A command that looks at this mount.
pub fn tool(program: &Path, mount: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args).arg("--mount").arg(mount);
    command
}

/// The `statsfs` command, looking at this mount.
pub fn statsfs(mount: &Path, args: &[&str]) -> Command {
    tool(binary::statsfs(), mount, args)
}

/// What a command says that succeeds and complains about nothing.
///
/// # Panics
/// If it does not, or does.
#[track_caller]
pub fn said(mut command: Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let complaints = String::from_utf8_lossy(&stderr);
    assert!(status.success() && complaints.is_empty(), "{command:?}: {status}: {complaints}");
    String::from_utf8(stdout).unwrap()
}

/// The only line that a command says that ends with this status.
///
/// # Panics
/// If it ends otherwise, or says more.
#[track_caller]
pub fn complains(mut command: Command, code: i32) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let complaint = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(code), "{command:?}: {complaint}");
    assert!(stdout.is_empty(), "{command:?}");
    let line = complaint.strip_suffix('\n').unwrap_or(&complaint).to_owned();
    assert!(!line.contains('\n') && !line.is_empty(), "one line: {complaint}");
    line
}

/// The line of JSON that a command says.
///
/// # Panics
/// If it says anything else.
#[track_caller]
pub fn json(command: Command) -> Json {
    let text = said(command);
    assert_eq!(text.matches('\n').count(), 1, "one line: {text}");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// A command that goes on until it is told to end, and its lines.
#[derive(Debug)]
pub struct Watch(Child, BufReader<ChildStdout>);

impl Watch {
    /// Starts it.
    ///
    /// # Panics
    /// If it can not be started.
    pub fn start(mut command: Command) -> Self {
        end_with_test(&mut command);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self(child, lines)
    }

    /// The next line; empty at its end.
    ///
    /// # Panics
    /// If it is no text.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.1.read_line(&mut line).unwrap();
        line
    }

    /// All lines that are still to come, to its end.
    ///
    /// # Panics
    /// If they are no text.
    pub fn rest(&mut self) -> String {
        let mut rest = String::new();
        self.1.read_to_string(&mut rest).unwrap();
        rest
    }

    /// Its status when it has ended by itself, and what it complained of. Nobody reads what it says from now on.
    ///
    /// # Panics
    /// If it does not end.
    pub fn end(mut self) -> (Option<i32>, String) {
        drop(self.1);
        let status = wait_until("it ends", || self.0.try_wait().unwrap());
        let mut complaint = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut complaint).unwrap();
        (status.code(), complaint)
    }
}
