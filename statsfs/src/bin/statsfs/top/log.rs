//! A log: a line of CSV for each guest and interval.

use std::error::Error;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use statsfs::snapshot::{Dir, Snapshot};
use statsfs::tools::say;
use std::os::fd::AsFd;

use super::Args;
use super::look::Looks;
use super::model::{Field, KVM, Pair, Row, Wanted, fields};
use crate::common::{unix_seconds, until_next};

/// What each line begins with.
const FIRST: &str = "time,seconds,path,guest,pid";
/// What follows if no values are asked for.
const ROW: &str = "exits_per_second,kvm_exits_per_second,guest_share,user_share,halt_share,steal_share,\
                   handle_p50_ns,handle_p99_ns,blk_read_bytes_per_second,blk_write_bytes_per_second,\
                   net_rx_bytes_per_second,net_tx_bytes_per_second";

/// Where lines go.
enum Log {
    Stdout,
    File(PathBuf, File),
}

impl Log {
    fn open(path: &Path) -> Result<Self, Box<dyn Error>> {
        if path == Path::new("-") {
            return Ok(Self::Stdout);
        }
        let file = File::options().create(true).append(true).open(path);
        let file =
            file.map_err(|error| format!("{} can not be written: {error}", path.display()))?;
        Ok(Self::File(path.to_owned(), file))
    }

    /// The line that it begins with.
    fn first_line(&self) -> Option<String> {
        let Self::File(path, _) = self else { return None };
        let mut line = String::new();
        BufReader::new(File::open(path).ok()?).read_line(&mut line).ok()?;
        Some(line)
    }

    /// Writes all of it, or says why not. False if nobody reads it any more.
    fn write(&mut self, text: &str) -> Result<bool, Box<dyn Error>> {
        match self {
            Self::Stdout => Ok(say(text)?),
            Self::File(path, file) => match file.write_all(text.as_bytes()) {
                Ok(()) => Ok(true),
                Err(error) => Err(format!("{} can not be written: {error}", path.display()).into()),
            },
        }
    }
}

/// Writes what came in each interval, until this is ended.
pub fn run(args: &Args, path: &Path, mut looks: Looks) -> Result<(), Box<dyn Error>> {
    let mut reopen = SigSet::empty();
    reopen.add(Signal::SIGHUP);
    reopen.thread_block()?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let reopened = SignalFd::with_flags(&reopen, flags)?;
    let mut log = Log::open(path)?;
    // It is not written again where a log is gone on with.
    let mut header = log.first_line().unwrap_or_default();
    let begin = Instant::now();
    let mut missing = String::new();
    looks.look()?;
    looks.model(&Wanted::default());
    loop {
        let next = Instant::now() + until_next(begin.elapsed(), args.interval);
        while is_signalled(&reopened, next)? {
            log = Log::open(path)?;
            header = log.first_line().unwrap_or_default();
        }
        match looks.look() {
            Ok(()) => missing.clear(),
            Err(why) => {
                if missing != why {
                    crate::tell(&why);
                    missing = why;
                }
                continue;
            }
        }
        let (head, lines) = lines(args, &mut looks);
        let mut text = String::new();
        if head != header {
            text += &head;
            header = head;
        }
        text += &lines;
        if !log.write(&text)? {
            return Ok(());
        }
    }
}

/// Waits, and answers whether the signal has come before it is time.
fn is_signalled(signals: &SignalFd, until: Instant) -> io::Result<bool> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        // Not before.
        let left = left + Duration::from_micros(999);
        let timeout = PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
            Ok(_) if signals.read_signal()?.is_some() => return Ok(true),
            Ok(_) if Instant::now() >= until => return Ok(false),
            Ok(_) => {}
        }
    }
}

/// The line that says what is in which column, and the lines of the last interval.
fn lines(args: &Args, looks: &mut Looks) -> (String, String) {
    if args.fields.is_some() {
        return of_values(args, looks);
    }
    let mut text = String::new();
    if let Some(model) = looks.model(&Wanted::default()) {
        let host = args.guests.is_all().then_some((&model.host, true));
        let guests = model.guests.iter().filter(|row| args.guests.is_meant(row));
        let time = unix_seconds(model.taken);
        for (row, is_host) in host.into_iter().chain(guests.map(|row| (row, false))) {
            if (args.skip_zero && row.is_idle()) || (is_host && row.path.is_empty()) {
                continue;
            }
            let name = if is_host { "" } else { &row.name };
            let pid = row.pid.map(|pid| pid.to_string()).unwrap_or_default();
            let seconds = model.seconds.unwrap_or(0.0);
            let _ = write!(text, "{time:.3},{seconds:.6},{},{name},{pid}", row.path);
            for number in numbers(row) {
                text.push(',');
                if let Some(number) = number {
                    let _ = write!(text, "{number}");
                }
            }
            text.push('\n');
        }
    }
    (format!("{FIRST},{ROW}\n"), text)
}

/// What a line has in the columns that follow.
fn numbers(row: &Row) -> [Option<f64>; 12] {
    let shares = row.shares.as_ref();
    let whole = |number: Option<u64>| number.map(|number| number as f64);
    [
        row.exits,
        row.kvm_exits,
        shares.map(|shares| shares.guest),
        shares.map(|shares| shares.user),
        shares.map(|shares| shares.halt),
        shares.and_then(|shares| shares.steal),
        whole(row.p50),
        whole(row.p99),
        row.io.read,
        row.io.written,
        row.io.received,
        row.io.sent,
    ]
}

/// The same of values that were asked for.
fn of_values(args: &Args, looks: &Looks) -> (String, String) {
    let (mut head, mut text) = (FIRST.to_owned(), String::new());
    let Some((now, changes)) = looks.pair() else { return (head + "\n", text) };
    let pair = Pair { now, changes: Some(&changes), zero: None };
    let is_wanted = |name: &str| args.fields.as_ref().is_none_or(|fields| fields.is_in(name));
    let columns = columns(now, is_wanted);
    columns.iter().for_each(|column| {
        let _ = write!(head, ",{column}");
    });
    let prefix = format!("{:.3},{:.6}", unix_seconds(now.taken()), changes.time().as_secs_f64());
    for dir in args.dirs(now) {
        let cells = cells(&fields(pair, dir, is_wanted));
        let is_zero =
            |(_, number): &(String, Option<i128>)| number.is_none_or(|number| number == 0);
        if args.skip_zero && cells.iter().all(is_zero) {
            continue;
        }
        let is_guest = dir.pid().is_some();
        let name = if is_guest { dir.bare_name() } else { "" };
        let pid = dir.pid().map(|pid| pid.to_string()).unwrap_or_default();
        let _ = write!(text, "{prefix},{},{name},{pid}", dir.path());
        for column in &columns {
            text.push(',');
            let cell = cells.iter().find(|(name, _)| name == column);
            if let Some((_, Some(number))) = cell {
                let _ = write!(text, "{number}");
            }
        }
        text.push('\n');
    }
    (head + "\n", text)
}

/// All columns that any guest fills, whoever of them is meant.
fn columns(now: &Snapshot, is_wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let pair = Pair { now, changes: None, zero: None };
    let kvm = now.dir(KVM);
    let machines = kvm.into_iter().flat_map(Dir::children).take(1);
    let mut columns: Vec<String> = Vec::new();
    for dir in kvm.into_iter().chain(machines) {
        for (name, _) in cells(&fields(pair, dir, &is_wanted)) {
            if !columns.contains(&name) {
                columns.push(name);
            }
        }
    }
    columns
}

/// By how much counts grew, what others are, and of histograms how many and their percentiles.
fn cells(fields: &[Field]) -> Vec<(String, Option<i128>)> {
    let mut cells = Vec::new();
    for field in fields {
        let name = &field.name;
        if field.recorded.is_some() {
            cells.push((format!("{name}/count"), field.increase.map(Into::into)));
            for (n, part) in ["p50", "p99"].into_iter().enumerate() {
                let number = field.percentiles.map(|both| both[n].into());
                cells.push((format!("{name}/{part}"), number));
            }
        } else if field.is_count {
            cells.push((name.clone(), field.increase.map(Into::into)));
        } else {
            cells.push((name.clone(), field.number));
        }
    }
    cells
}
