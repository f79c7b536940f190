//! `statsfs record`, while a test goes on, and the numbers of a `statsfs report`.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value as Json;
use statsfs::snapshot::recording::{Content, Frame, Reader};

use crate::binary;
use crate::command::{said, statsfs};
use crate::running::wait_until;
use crate::vmm::end_with_test;

/// A recording that is being made.
#[derive(Debug)]
pub struct Recorder {
    child: Child,
    file: PathBuf,
}

impl Recorder {
    /// Starts one of this mount, and waits for its first look.
    ///
    /// # Panics
    /// If it can not be started.
    pub fn start(mount: &Path, file: &Path, args: &[&str]) -> Self {
        let file = file.to_owned();
        let args = [&["record", file.to_str().expect("UTF-8")], args].concat();
        let mut command = statsfs(mount, &args);
        end_with_test(&mut command);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let recorder = Self { child: child.spawn().expect("it was built"), file };
        recorder.wait_for(1, |frame| matches!(frame.content, Content::Snapshot(_)));
        recorder
    }

    /// The recorder's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it has so many frames of a kind, and answers how many of them.
    ///
    /// # Panics
    /// If they do not come.
    pub fn wait_for(&self, count: usize, is_one: impl Fn(&Frame) -> bool) -> usize {
        wait_until("frames", || {
            let found = frames(&self.file).iter().filter(|frame| is_one(frame)).count();
            (found >= count).then_some(found)
        })
    }

    /// Waits for two more looks: what happened before is in the second of them.
    pub fn wait_for_looks(&self) {
        let is_look = |frame: &Frame| matches!(frame.content, Content::Snapshot(_));
        let so_far = frames(&self.file).iter().filter(|frame| is_look(frame)).count();
        self.wait_for(so_far + 2, is_look);
    }

    /// Sends it a signal, and answers its status and what it said.
    ///
    /// # Panics
    /// If it does not end.
    pub fn end(mut self, signal: libc::c_int) -> (Option<i32>, String) {
        // SAFETY: no pointers; the child has not been waited for, so its number is its own.
        let sent = unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
        assert_eq!(sent, 0, "it runs");
        wait_until("it ends", || self.child.try_wait().expect("a child"));
        let output = self.child.wait_with_output().expect("it has ended");
        assert!(output.stdout.is_empty());
        (output.status.code(), String::from_utf8(output.stderr).expect("messages are text"))
    }
}

/// The whole frames that a file has so far.
pub fn frames(file: &Path) -> Vec<Frame> {
    let Ok(mut reader) = Reader::open(file) else { return Vec::new() };
    std::iter::from_fn(|| reader.next_frame().ok().flatten()).collect()
}

/// A report as it is made, with these arguments.
pub fn report(file: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(binary::statsfs());
    command.arg("report").arg(file).args(args);
    command
}

/// What a report's charts are drawn from.
#[derive(Debug)]
pub struct Data(pub Json);

impl Data {
    /// Of a recording.
    pub fn of(file: &Path) -> Self {
        Self::in_page(&said(report(file, &["-o", "-"])))
    }

    /// Of a page.
    ///
    /// # Panics
    /// If it has none.
    pub fn in_page(page: &str) -> Self {
        let (_, rest) = page.split_once(" id=\"data\">").expect("data");
        let (data, _) = rest.split_once("</script>").expect("its end");
        Self(serde_json::from_str(data).expect("JSON"))
    }

    /// All parts; the first is the whole.
    ///
    /// # Panics
    /// If there are none.
    pub fn parts(&self) -> &[Json] {
        self.0["parts"].as_array().expect("parts")
    }

    /// The part whose path ends so.
    ///
    /// # Panics
    /// If there is none.
    pub fn part(&self, path: &str) -> &Json {
        let mut parts = self.parts().iter();
        let is_it = |part: &&Json| part["path"].as_str().is_some_and(|of| of.ends_with(path));
        parts.find(is_it).unwrap_or_else(|| panic!("no {path}"))
    }

    /// What came of a reason in each column.
    pub fn line<'d>(&self, part: &'d Json, reason: &str) -> Option<&'d Vec<Json>> {
        let reasons = self.0["reasons"].as_array()?;
        let n = reasons.iter().position(|name| name == reason)?;
        part["exits"][n].as_array()
    }

    /// How many exits of a part there were in all for a reason.
    pub fn exits(&self, part: &Json, reason: &str) -> u64 {
        self.line(part, reason).map_or(0, |line| sum(line))
    }

    /// Names of the reasons.
    pub fn reasons(&self) -> impl Iterator<Item = &str> {
        self.0["reasons"].as_array().into_iter().flatten().filter_map(Json::as_str)
    }
}

/// The sum of numbers.
pub fn sum(line: &[Json]) -> u64 {
    line.iter().filter_map(Json::as_u64).sum()
}
