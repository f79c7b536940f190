//! What the tools that look at a mount have in common.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use statsfs::snapshot::Snapshot;
use statsfs::tools::{find_mount, look};

use crate::recordings;

/// What the help of each of them ends with.
pub const EXIT_STATUS: &str =
    "Exit status: 0; 1 if it could not be done, with a line that says why; 2 if asked wrongly.";

/// Where to look.
#[derive(Debug, clap::Args)]
pub struct Place {
    /// Where the statistics are mounted [default: /run/statsfs, or else $XDG_RUNTIME_DIR/statsfs]
    #[arg(long, value_name = "DIR")]
    mount: Option<PathBuf>,
}

impl Place {
    /// A directory of the mount.
    pub fn dir(&self, path: Option<&Path>) -> Result<PathBuf, Box<dyn Error>> {
        Ok(match path {
            // It says itself where it is.
            Some(path) if path.is_absolute() => path.to_owned(),
            Some(path) => find_mount(self.mount.as_deref())?.join(path),
            None => find_mount(self.mount.as_deref())?,
        })
    }

    /// What is in and below a directory of the mount, or in a snapshot that was saved, or was at the end of a recording.
    pub fn look(&self, path: Option<&Path>) -> Result<Snapshot, Box<dyn Error>> {
        let dir = match path {
            Some(path) if is_saved(path) => return recordings::last(path),
            path => self.dir(path)?,
        };
        if dir.is_file() {
            let dir = dir.display();
            return Err(format!("{dir} is a file, and no directory: `cat {dir}` shows it").into());
        }
        Ok(look(&dir)?)
    }
}

/// Whether a path is that of a snapshot that was saved, or of a recording, and of nothing in a mount.
pub fn is_saved(path: &Path) -> bool {
    // What is mounted has no size.
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() > 0)
}

/// The times at which something is done again: in step, however long it takes.
pub fn until_next(since_start: Duration, interval: Duration) -> Duration {
    let interval = interval.as_nanos().max(1);
    Duration::from_nanos((interval - since_start.as_nanos() % interval) as u64)
}

/// Seconds since 1970.
pub fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Parses an interval.
pub fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.01..=86_400.0).contains(seconds));
    let seconds = seconds.ok_or("an interval is a number of seconds, from 0.01 to 86400")?;
    Ok(Duration::from_secs_f64(seconds))
}

/// The path of a directory, of which that of the mount has none.
pub fn shown_path(path: &str) -> &str {
    if path.is_empty() { "." } else { path }
}

/// Has a write past the largest size that this process's files may have (RLIMIT_FSIZE) fail with EFBIG, and not
/// end the process by SIGXFSZ: that of a log, of what is kept or recorded.
pub fn outlive_file_size() {
    // SAFETY: ignoring a signal installs no code.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}
