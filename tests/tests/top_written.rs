//! What `statsfs top` writes: one table, a log, and what it makes of hundreds of guests.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use statsfs::host::PublishOptions;
use statsfs::{Registry, Slot, Source, stats};
use tests::binary;
use tests::command::{Watch, said, statsfs};
use tests::guest::{Mode, NO_PORT, Op, Step, end, park};
use tests::host::Host;
use tests::running::{Running, wait_until};
use tests::screen::{Screen, row};
use tests::vmm::{Vmm, end_with_test};

/// A guest of one vCPU that makes so many reads, and waits until its console is taken.
fn waiting(host: &Host, name: &'static str, reads: u32) -> Running {
    let steps = [Step::new(Op::In8, reads, NO_PORT), park(), end(0)];
    let vmm = Vmm::new(Mode::Long, &steps).args(["--memory", "2M"]).called(name);
    let running = vmm.published_to(host).blocked_console().start();
    let path = format!("kvm/{}-{name}/bus_unclaimed_io_reads", running.pid());
    wait_until("it waits", || (host.value(&path) == Some(reads.into())).then_some(()));
    running
}

fn top(host: &Host, args: &[&str]) -> std::process::Command {
    statsfs(&host.mount(), &[&["top"], args].concat())
}

#[test]
fn one_table_has_the_guests_and_values_that_are_asked_for() {
    let host = Host::start();
    let guests = [("web1", 1500), ("web2", 20), ("db", 7)].map(|(name, n)| waiting(&host, name, n));
    let words = |text: &str| -> Vec<Vec<String>> {
        text.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
    };
    let text = said(top(&host, &["-1", "-i", "0.1"]));
    let rows = words(&text);
    let total = rows[0].iter().position(|title| title == "TOTAL").unwrap();
    let named =
        |name: &str| rows.iter().find(|row| row[0] == name).unwrap_or_else(|| panic!("{text}"));
    // The write to the console is one more.
    for (name, all) in [("web1", "1,501"), ("web2", "21"), ("db", "8"), ("(all)", "1,530")] {
        assert!(named(name).contains(&all.to_owned()), "{name}: {all} in {text}");
    }
    assert!(rows[0].len() > 15 && total > 10 && rows.len() == 5, "{text}");

    // Of some guests, each for itself; of all, together.
    let pid = guests[2].pid().to_string();
    for (args, names) in [
        (&["-g", "^web"][..], &["web1", "web2"][..]),
        (&["--guest", "WEB2|db"], &["web2", "db"]),
        (&["-p", &pid], &["db"]),
        (&["-z"], &["(all)"]),
    ] {
        let text = said(top(&host, &[&["-1", "-i", "0.05"], args].concat()));
        let rows = words(&text);
        let mut found: Vec<_> = rows[1..].iter().map(|row| row[0].as_str()).collect();
        let mut names = names.to_vec();
        found.sort_unstable();
        names.sort_unstable();
        assert_eq!(found, names, "{args:?}: {text}");
    }
    let text = said(top(&host, &["-1", "-i", "0.05", "-f", "^user_exit_(io_in|hlt)$"]));
    assert_eq!(row(&text, "user_exit_io_in").unwrap()[..3], ["user_exit_io_in", "1,527", "0"]);
    assert_eq!(row(&text, "user_exit_hlt").unwrap()[1], "0");
    assert_eq!(text.lines().count(), 3, "{text}");
    let args = ["-1", "-i", "0.05", "-f", "^user_exit_", "-z", "-g", "web2"];
    let text = said(top(&host, &args));
    assert_eq!(text.lines().next(), Some(&*format!("kvm/{}-web2", guests[1].pid())), "{text}");
    assert_eq!(row(&text, "user_exit_io_in").unwrap()[1], "20");
    assert!(row(&text, "user_exit_hlt").is_none(), "{text}");
    drop(guests);
}

/// The lines of a log, by column.
fn lines(text: &str) -> Vec<HashMap<&str, &str>> {
    let mut lines = text.lines();
    let mut heads: Vec<_> = lines.next().unwrap_or_default().split(',').collect();
    let mut found = Vec::new();
    for line in lines {
        let cells: Vec<_> = line.split(',').collect();
        if cells[0] == "time" {
            heads = cells;
            continue;
        }
        assert_eq!(cells.len(), heads.len(), "{line}");
        found.push(heads.iter().copied().zip(cells).collect());
    }
    found
}

#[test]
fn a_log_adds_up_to_what_was_counted_and_is_opened_anew_when_it_is_moved() {
    let host = Host::start();
    let stays = waiting(&host, "stays", 10);
    let (log, moved) = (host.beside("top.csv"), host.beside("moved.csv"));
    let args = [
        "--log",
        log.to_str().unwrap(),
        "-i",
        "0.1",
        "-f",
        "^user_(exit_io_in|run_time)$|^vm_vcpus$",
    ];
    let start = || {
        let mut command = top(&host, &args);
        end_with_test(&mut command);
        command.spawn().unwrap()
    };
    let mut logged = start();
    let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    let count = |path: &Path| read(path).lines().count();
    wait_until("a line", || (count(&log) > 2).then_some(()));
    // One comes and goes, and one comes and stays.
    waiting(&host, "goes", 300).kill_and_wait();
    let comes = waiting(&host, "comes", 1000);
    let reads = |text: &str, is: &dyn Fn(&str) -> bool| -> u64 {
        let lines = lines(text);
        let of = lines.iter().filter(|line| is(line["path"]));
        of.filter_map(|line| line["user_exit_io_in"].parse::<u64>().ok()).sum()
    };
    let name = comes.machine();
    wait_until("all of it", || (reads(&read(&log), &|path| path == "kvm") == 1300).then_some(()));
    let text = read(&log);
    // What it counted before it was first seen is not its rate, if it began before the look before.
    let all = lines(&text);
    let first = all.iter().find(|line| line["path"] == name).unwrap();
    let own = reads(&text, &|path| path == name);
    assert!(own == 1000 || own < 1000 && first["user_exit_io_in"].is_empty(), "{own}: {text}");
    let first = text.lines().next().unwrap();
    assert_eq!(
        first,
        "time,seconds,path,guest,pid,user_exit_io_in,\
         user_run_time/count,user_run_time/p50,user_run_time/p99,vm_vcpus",
        "{text}"
    );
    assert_eq!(text.matches("time,").count(), 1, "{text}");
    let all = lines(&text);
    let last = all.iter().rfind(|line| line["path"] == name).unwrap();
    assert_eq!(
        (last["guest"], last["pid"], last["vm_vcpus"]),
        ("comes", &*comes.pid().to_string(), "1")
    );
    assert!(all.iter().all(|line| line["seconds"].parse::<f64>().unwrap() > 0.0));

    // Moved away, it goes on there until it is told.
    std::fs::rename(&log, &moved).unwrap();
    let before = count(&moved);
    wait_until("more", || (count(&moved) > before + 2).then_some(()));
    assert!(!log.exists());
    // SAFETY: no pointers; the child has not been waited for.
    unsafe { libc::kill(logged.id() as libc::pid_t, libc::SIGHUP) };
    wait_until("a new log", || (count(&log) > 3).then_some(()));
    assert_eq!(read(&log).lines().next(), Some(first));
    assert_eq!(logged.try_wait().unwrap(), None);
    // SAFETY: as above.
    unsafe { libc::kill(logged.id() as libc::pid_t, libc::SIGTERM) };
    logged.wait().unwrap();
    let text = read(&log);
    assert!(text.ends_with('\n'), "whole lines: {text}");
    // One that goes on has no second header.
    let mut again = start();
    let before = count(&log);
    wait_until("more", || (count(&log) > before + 2).then_some(()));
    again.kill().unwrap();
    again.wait().unwrap();
    assert_eq!(read(&log).matches("time,").count(), 1);

    // Of a guest, and only where something happened: then nothing but the first line.
    let mut watch = Watch::start(top(&host, &["--log", "-", "-i", "0.05", "-g", "comes"]));
    assert!(watch.line().starts_with("time,seconds,path,guest,pid,exits_per_second,"));
    let line = watch.line();
    assert_eq!(line.split(',').nth(3), Some("comes"), "{line}");
    assert_eq!(line.split(',').nth(5), Some("0"), "{line}");
    assert_eq!(watch.end(), (Some(0), String::new()));
    let mut watch = Watch::start(top(&host, &["--log", "-", "-i", "0.05", "-z"]));
    assert!(watch.line().starts_with("time,"));
    // It goes on, so that the log sees when nobody reads it.
    let steps = [Step::new(Op::In8, u32::MAX, NO_PORT), end(0)];
    let busy = Vmm::new(Mode::Long, &steps).args(["--memory", "2M"]).called("busy");
    let busy = busy.published_to(&host).start();
    let line = watch.line();
    assert!(line.contains(",kvm,") || line.contains(",busy,"), "{line}");
    assert_eq!(watch.end(), (Some(0), String::new()));
    drop([stays, comes, busy]);
}

stats! {
    /// What a simulated vCPU counts.
    pub consistent struct Simulated: "vcpu" {
        /// Exits.
        user_exits: Counter,
        /// Exits because of port reads.
        user_exit_io_in: Counter { family: "user_exits", label: "reason=io_in" },
        /// How long they took.
        user_handle_time: Histogram<Nanoseconds> { buckets: 40 },
    }
}

/// Guests of one vCPU that count what they are told to.
struct Guests {
    registry: Registry,
    slots: Vec<Slot<Simulated>>,
    _sources: Vec<Source>,
}

impl Guests {
    fn new(count: usize) -> Self {
        let registry = Registry::new().unwrap();
        let top = registry.create_source("kvm").unwrap();
        top.register().unwrap();
        let (mut slots, mut sources) = (Vec::new(), vec![top.clone()]);
        for n in 0..count {
            let [guest, vcpu] = [format!("guest{n}"), "vcpu0".into()]
                .map(|name| registry.create_source(&name).unwrap());
            top.add_subordinate(&guest).unwrap();
            guest.add_subordinate(&vcpu).unwrap();
            slots.push(vcpu.add_values::<Simulated>().unwrap());
            sources.extend([guest, vcpu]);
        }
        Self { registry, slots, _sources: sources }
    }

    /// Each makes as many exits as its number says, times so many, of 100 ns each.
    fn exit(&self, times: u64) {
        for (n, slot) in self.slots.iter().enumerate() {
            let exits = n as u64 * times;
            slot.update(|counters| {
                counters.user_exits.add(exits);
                counters.user_exit_io_in.add(exits);
            });
            (0..exits.min(5)).for_each(|_| slot.user_handle_time.record(100));
        }
    }
}

#[test]
fn two_hundred_guests_are_sorted_filtered_and_gone_through() {
    const COUNT: usize = 200;
    let host = Host::start();
    let guests = Guests::new(COUNT);
    guests.exit(1);
    let options = PublishOptions { socket: Some(host.socket()), ..Default::default() };
    let published = guests.registry.publish(options).unwrap();
    let last = format!("kvm/{}-guest199/user_exits", std::process::id());
    wait_until("all of them", || (host.value(&last) == Some(199)).then_some(()));
    let screen = Screen::new(80, 24);
    screen.start(binary::statsfs(), &["top", "-i", "0.3"], &host.mount());
    screen.wait_for("guests 200");
    // Those that exit the most come first, at rates that are as their numbers are.
    let number = |name: &str| name.strip_prefix("guest").and_then(|n| n.parse::<usize>().ok());
    let shown_guests = |shown: &str| -> Vec<usize> {
        let names = shown.lines().filter_map(|line| line.split_whitespace().next());
        names.filter_map(number).collect()
    };
    wait_until("sorted by exits", || {
        guests.exit(3);
        std::thread::sleep(Duration::from_millis(100));
        let shown = screen.shown();
        let found = shown_guests(&shown);
        let sorted: Vec<_> = (0..COUNT).rev().take(found.len()).collect();
        let rate = |name| -> Option<f64> {
            row(&shown, name)?.iter().skip(3).find_map(|word| tests::screen::number(word))
        };
        let ratio = rate("guest199")? / rate("guest190")?;
        (found.len() > 10 && found == sorted && (ratio - 199.0 / 190.0).abs() < 0.01).then_some(())
    });
    assert!(screen.shown().contains("1/200"), "{}", screen.shown());
    // To the end, where the least ones are, and back by a screen.
    screen.keys(&["End"]);
    let shown = screen.wait_for("200/200");
    assert_eq!(shown_guests(&shown).last(), Some(&0), "{shown}");
    screen.keys(&["PageUp"]);
    screen.wait("a screen before", |shown| (!shown.contains("200/200")).then_some(()));
    screen.keys(&["Home"]);
    screen.wait_for("1/200");
    // By a regular expression.
    screen.text("/t19.$");
    screen.keys(&["Enter"]);
    let shown = screen.wait_for("only /t19.$/, 190 more");
    assert_eq!(shown_guests(&shown).len(), 10, "{shown}");
    screen.keys(&["Escape"]);
    // A click on the title sorts, and one on a row chooses it; the wheel goes on.
    screen.wait_for("1/200");
    let heads = screen.shown().lines().position(|line| line.starts_with("GUEST")).unwrap() + 1;
    let click = |row: usize| screen.text(&format!("\x1b[<0;2;{row}M\x1b[<0;2;{row}m"));
    click(heads);
    let shown = screen.wait_for("GUEST▼");
    assert_eq!(shown_guests(&shown)[..12], (0..12).collect::<Vec<_>>()[..], "{shown}");
    click(heads + 5);
    screen.wait_for("5/200");
    screen.text("\x1b[<65;2;12M");
    screen.wait_for("8/200");
    click(heads + 3);
    screen.wait_for("3/200");
    click(heads + 3);
    screen.wait_for("host › guest2");
    screen.keys(&["Escape"]);
    screen.wait_for("3/200");
    // On a large screen there is more, on a small one less, and on a tiny one nothing.
    screen.keys(&["t"]);
    screen.resize(180, 50);
    screen.wait_for("< 128 ns");
    let shown = screen.wait_for("exits of host by reason");
    assert!(shown_guests(&shown).len() > 35, "{shown}");
    screen.resize(20, 5);
    screen.wait_for("too small");
    screen.resize(80, 24);
    screen.wait_for("3/200");
    // All of them go at once.
    drop(published);
    drop(guests);
    screen.wait_for("no guest runs");
    screen.keys(&["q"]);
}
