//! A terminal of so many columns and rows: tmux's, of a server of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::running::wait_until;

/// A terminal in which a shell runs. It ends, with all that runs in it, when this is dropped.
#[derive(Debug)]
pub struct Screen {
    directory: TempDir,
}

impl Screen {
    /// One with a shell that says nothing by itself.
    ///
    /// # Panics
    /// If there is no tmux.
    pub fn new(width: u16, height: u16) -> Self {
        let directory =
            tempfile::Builder::new().prefix("statsfs-test-").tempdir().expect("a place");
        let screen = Self { directory };
        let (width, height) = (width.to_string(), height.to_string());
        // Nothing of the user's, neither of tmux nor of the shell.
        let args = ["-f", "/dev/null", "new-session", "-d", "-x", &width, "-y", &height];
        let shell = "env PS1='$ ' LC_ALL=C.UTF-8 sh";
        let mut command = screen.command(&args);
        let output = command.arg(shell).output().expect("`apt-get install -y tmux`");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // It stays as large, whoever looks.
        screen.tmux(&["set-option", "-g", "window-size", "manual"]);
        screen.tmux(&["set-option", "-g", "status", "off"]);
        screen.resize(width.parse().expect("a number"), height.parse().expect("a number"));
        screen
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("tmux");
        command.arg("-u").arg("-S").arg(self.directory.path().join("socket")).args(args);
        command.env_remove("TMUX");
        command
    }

    fn tmux(&self, args: &[&str]) -> String {
        let Output { status, stdout, stderr } = self.command(args).output().expect("it ran");
        assert!(status.success(), "tmux {args:?}: {}", String::from_utf8_lossy(&stderr));
        String::from_utf8(stdout).expect("screens are text")
    }

    /// A place for files.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Has the shell run a command.
    pub fn run(&self, command: &str) {
        self.text(command);
        self.keys(&["Enter"]);
    }

    /// Has the shell run this program with these arguments.
    pub fn start(&self, program: &Path, args: &[&str], mount: &Path) {
        let (program, mount) = (program.display(), mount.display());
        self.run(&format!("{program} {} --mount {mount}", args.join(" ")));
    }

    /// Types keys, by tmux' names.
    pub fn keys(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    /// Types a text.
    pub fn text(&self, text: &str) {
        self.tmux(&["send-keys", "-l", text]);
    }

    /// Makes it another size.
    pub fn resize(&self, width: u16, height: u16) {
        let (width, height) = (width.to_string(), height.to_string());
        self.tmux(&["resize-window", "-x", &width, "-y", &height]);
    }

    /// What is on it.
    pub fn shown(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// The same, with the sequences that colours are made with.
    pub fn coloured(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-e"])
    }

    /// What tmux knows of it, by its names.
    pub fn about(&self, format: &str) -> String {
        self.tmux(&["display-message", "-p", format]).trim_end().to_owned()
    }

    /// Waits until something is on it.
    ///
    /// # Panics
    /// If it does not come.
    #[track_caller]
    pub fn wait<T>(&self, what: &str, find: impl Fn(&str) -> Option<T>) -> T {
        let mut last = String::new();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        wait_until(what, || {
            last = self.shown();
            assert!(std::time::Instant::now() < deadline, "{what} is not on the screen:\n{last}");
            find(&last)
        })
    }

    /// Waits until this text is on it, and returns all that is.
    #[track_caller]
    pub fn wait_for(&self, text: &str) -> String {
        self.wait(text, |shown| shown.contains(text).then(|| shown.to_owned()))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.command(&["kill-server"]).output();
    }
}

/// The words of the line on a screen that begins with this word.
pub fn row<'a>(shown: &'a str, first: &str) -> Option<Vec<&'a str>> {
    let mut rows = shown.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.find(|words| words.first() == Some(&first))
}

/// A number as it is shown, with its commas and unit: `12,345/s`, `5.1`.
pub fn number(text: &str) -> Option<f64> {
    text.trim_end_matches("/s").replace(',', "").parse().ok()
}
