//! `statsfs record`.

mod ends;
mod progress;

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use statsfs::snapshot::Snapshot;
use statsfs::snapshot::recording::{About, Writer};
use statsfs::tools::{look, told};

use self::ends::Ends;
use self::progress::Progress;
use crate::common::{EXIT_STATUS, Place, is_saved, outlive_file_size, parse_seconds, until_next};

const HELP: &str = "\
Show it with `statsfs report FILE -o report.html`; `statsfs dump FILE` has what was counted at its end, and `statsfs diff FILE`
what came between its beginning and its end.

Ctrl-C, SIGTERM and SIGHUP end a recording as --seconds does, with a last look and status 0; a second one does at once, with
its own status (130, 143, 129). One that is killed is whole up to its last look. Where there is nothing to be
seen for a while (the server is being started again, the guest has gone), it has a gap, and goes on.";

/// What to record.
#[derive(Debug, clap::Args)]
#[command(after_help = format!("{HELP}\n\n{EXIT_STATUS}"))]
pub struct Args {
    /// The file to write
    file: PathBuf,
    /// A directory of the mount [default: the whole mount]
    path: Option<PathBuf>,
    /// For so long [default: until Ctrl-C]
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    seconds: Option<Duration>,
    /// The time between two looks
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = parse_seconds)]
    interval: Duration,
    /// Write over a file that is there
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    place: Place,
}

pub fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let ends = Ends::new()?;
    outlive_file_size();
    if let Some(path) = args.path.as_deref().filter(|path| is_saved(path)) {
        let path = path.display();
        return Err(format!("{path} is a file: a directory of a mount is recorded").into());
    }
    if args.file.exists() && !args.force {
        return Err(there(&args.file).into());
    }
    let dir = args.place.dir(args.path.as_deref())?;
    // Before the file is made: where nothing can be seen, none is.
    let begin = Instant::now();
    let first = look(&dir)?;
    let mut recording = Recording::create(args, &dir)?;
    let mut progress = Progress::new(args.seconds);
    recording.take(Ok(first))?;
    progress.show(&recording);
    let until = args.seconds.map(|seconds| begin + seconds);
    loop {
        let next = until_next(begin.elapsed(), args.interval);
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let is_end = ends.within(left.map_or(next, |left| left.min(next)));
        // Also where the first one took longer than all: one alone says nothing.
        recording.take(look(&dir).map_err(|error| told(&error)))?;
        progress.show(&recording);
        if is_end || until.is_some_and(|until| Instant::now() >= until) {
            break;
        }
    }
    progress.end(&recording);
    recording.end()
}

fn there(file: &Path) -> String {
    let file = file.display();
    format!("{file} is there already: --force writes over it")
}

/// What is being written.
struct Recording<'a> {
    path: &'a Path,
    writer: Writer<File>,
    looks: usize,
    /// Why nothing was to be seen the last time.
    gap: Option<String>,
}

impl<'a> Recording<'a> {
    fn create(args: &'a Args, dir: &Path) -> Result<Self, Box<dyn Error>> {
        let path = &*args.file;
        let mut options = OpenOptions::new();
        options.write(true);
        if args.force {
            options.create(true).truncate(true);
        } else {
            options.create_new(true);
        }
        let file = options.open(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => there(path),
            _ => format!("{} can not be written: {error}", path.display()),
        })?;
        let writer = Writer::new(file, &about(dir, args.interval)).map_err(|error| {
            // One without a header would only be in the way. What is no file, as /dev/full, is not ours.
            if std::fs::symlink_metadata(path).is_ok_and(|there| there.is_file()) {
                let _ = std::fs::remove_file(path);
            }
            format!("{} can not be written: {error}", path.display())
        })?;
        Ok(Self { path, writer, looks: 0, gap: None })
    }

    /// Writes what a look found, or, once, why it found nothing.
    fn take(&mut self, found: Result<Snapshot, String>) -> Result<(), Box<dyn Error>> {
        let written = match &found {
            Ok(snapshot) => {
                self.gap = None;
                self.looks += 1;
                self.writer.snapshot(snapshot)
            }
            Err(_) if self.gap.is_some() => Ok(()),
            Err(why) => self.writer.gap(SystemTime::now(), why),
        };
        self.gap = found.err();
        let Err(error) = written else { return Ok(()) };
        // So that what is there can be read.
        let _ = self.writer.get_ref().set_len(self.writer.written());
        let (path, looks) = (self.path.display(), self.looks.saturating_sub(1));
        Err(format!("{path} has {looks} whole looks, and can not be written any more: {error}")
            .into())
    }

    fn end(self) -> Result<(), Box<dyn Error>> {
        let (path, whole) = (self.path.display(), self.writer.written());
        let file = self.writer.get_ref().try_clone()?;
        self.writer.end(SystemTime::now()).map_err(|error| {
            let _ = file.set_len(whole);
            format!("{path} is whole, but that it is at its end can not be written: {error}").into()
        })
    }
}

fn about(dir: &Path, interval: Duration) -> About {
    let system = nix::sys::utsname::uname();
    let of = |part: fn(&nix::sys::utsname::UtsName) -> &std::ffi::OsStr| {
        system.as_ref().map(|system| part(system).to_string_lossy().into_owned())
    };
    About {
        host: of(|system| system.nodename()).unwrap_or_default(),
        kernel: of(|system| system.release()).unwrap_or_default(),
        program: concat!("statsfs ", env!("CARGO_PKG_VERSION")).into(),
        dir: dir.display().to_string(),
        interval_ns: interval.as_nanos() as u64,
    }
}
