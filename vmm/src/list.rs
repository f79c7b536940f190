//! `vmm list`: the guests of a host, from its statistics alone.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use statsfs::snapshot::{Changes, Dir, Snapshot, What};
use statsfs::tools::{Columns, Side, find_mount, in_unit, look, per_second, say, told};
use statsfs::value::Unit;

use crate::message::tell;
use crate::tree::KvmTree;

/// Arguments of `vmm list`.
#[derive(Debug, Args)]
#[command(after_help = "\
Guests that this user may not look into are counted, and not listed: their user, root and the readers' group may.

Exit status: 0; 1 if it could not be done, with a line that says why; 2 if asked wrongly.")]
pub struct ListArgs {
    /// Where the statistics are mounted [default: /run/statsfs, or else $XDG_RUNTIME_DIR/statsfs]
    #[arg(long, value_name = "DIR")]
    mount: Option<PathBuf>,
    /// How many seconds exits are counted
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = parse_interval)]
    interval: Duration,
    /// As JSON
    #[arg(long)]
    json: bool,
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.01..=3600.0).contains(seconds));
    let seconds = seconds.ok_or("exits are counted for a number of seconds, from 0.01 to 3600")?;
    Ok(Duration::from_secs_f64(seconds))
}

/// What is said of all.
#[derive(Serialize)]
struct List {
    guests: Vec<Guest>,
    /// How many more there are that may not be looked into.
    closed: usize,
}

/// What is said of one.
#[derive(Serialize)]
struct Guest {
    name: String,
    pid: Option<u32>,
    state: Option<String>,
    vcpus: Option<i128>,
    memory_bytes: Option<i128>,
    /// Exits to user space; none if it is not known for how long they were counted.
    exits_per_second: Option<f64>,
}

/// Lists the guests. A failure is one line on standard error.
pub fn main(args: &ListArgs) -> ExitCode {
    match list(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(told(&*error));
            ExitCode::FAILURE
        }
    }
}

fn list(args: &ListArgs) -> Result<(), Box<dyn Error>> {
    let mount = find_mount(args.mount.as_deref())?;
    // Names are known all over the mount: where there are no machines yet, there is no `kvm` either.
    let before = look(&mount)?;
    sleep(args.interval);
    let after = look(&mount)?;
    let list = List::of(&before, &after)?;
    let text = if args.json { serde_json::to_string(&list)? + "\n" } else { list.text() };
    say(&text)?;
    Ok(())
}

impl List {
    fn of(before: &Snapshot, after: &Snapshot) -> Result<Self, Box<dyn Error>> {
        let changes = Changes::between(before, after)?;
        let Some(kvm) = after.dir(KvmTree::NAME) else {
            return Ok(Self { guests: Vec::new(), closed: 0 });
        };
        let machines: Vec<_> = kvm.children().filter(|dir| dir.what() == What::Guest).collect();
        let closed = kvm.child_count().saturating_sub(kvm.children().count());
        let guests = machines.into_iter().map(|dir| Guest::of(dir, &changes)).collect();
        Ok(Self { guests, closed })
    }

    fn text(&self) -> String {
        let mut columns = Columns::new([
            Side::Left,
            Side::Right,
            Side::Left,
            Side::Right,
            Side::Right,
            Side::Right,
        ]);
        columns.row(["NAME", "PID", "STATE", "VCPUS", "MEMORY", "EXITS"]);
        for guest in &self.guests {
            let number = |number: Option<i128>| number.map_or("?".into(), |n| n.to_string());
            let memory = guest.memory_bytes.map(|bytes| in_unit(bytes, Unit::BYTES));
            let exits = guest.exits_per_second.map(|rate| per_second(rate, Unit::NONE));
            columns.row([
                guest.name.clone(),
                number(guest.pid.map(Into::into)),
                guest.state.clone().unwrap_or("?".into()),
                number(guest.vcpus),
                memory.unwrap_or("?".into()),
                exits.unwrap_or("?".into()),
            ]);
        }
        let mut text = match self.guests.len() {
            0 => "No guest runs that this user may look into.\n".to_owned(),
            _ => columns.text(""),
        };
        if self.guests.is_empty() && self.closed == 0 {
            text = "No guest runs.\n".into();
        }
        if self.closed > 0 {
            let (are, guests) = if self.closed == 1 { ("is", "guest") } else { ("are", "guests") };
            text += &format!(
                "There {are} {} more {guests} that this user may not look into.\n",
                self.closed
            );
        }
        text
    }
}

impl Guest {
    fn of<'a>(dir: Dir<'a>, changes: &Changes<'a>) -> Self {
        let number = |name: &str| dir.value(name)?.number();
        let state = dir.value("vm_state").and_then(|state| {
            let number = state.number()?;
            let name = state.descriptor().states.get(usize::try_from(number).ok()?);
            Some(name.map_or(number.to_string(), |name| name.to_string()))
        });
        let exits = changes.value(dir, "user_exits").and_then(|change| change.increase);
        Self {
            name: dir.bare_name().to_owned(),
            pid: dir.pid(),
            state,
            vcpus: number("vm_vcpus"),
            memory_bytes: number("vm_memory_bytes"),
            exits_per_second: exits.map(|exits| changes.per_second(exits)),
        }
    }
}
