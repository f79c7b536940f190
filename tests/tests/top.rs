//! `statsfs top` in a real terminal: keys are typed, and what is on the screen is compared with what guests are known to do.

use std::path::{Path, PathBuf};
use std::time::Instant;

use tests::binary;
use tests::command::{complains, statsfs};
use tests::guest::{Mode, NO_PORT, Op, Step, end, park};
use tests::host::Host;
use tests::running::{Running, wait_until};
use tests::screen::{Screen, number, row};
use tests::vmm::Vmm;

/// Exits of each vCPU of a guest before it waits, by reason: writes and reads of ports.
const WRITES: u32 = 700;
const READS: u32 = 250;

/// A guest of two vCPUs that makes so many exits, and waits until its console is taken.
fn waiting(host: &Host, name: &'static str, reads: u32, more: &[Step]) -> Running {
    let first = [Step::new(Op::Out8, WRITES, NO_PORT), Step::new(Op::In8, reads, NO_PORT), park()];
    let steps = [&first[..], more, &[end(0)]].concat();
    let vmm = Vmm::new(Mode::Long, &steps).cpus(2).args(["--memory", "2M"]).called(name);
    let running = vmm.published_to(host).blocked_console().start();
    let path = format!("kvm/{}-{name}/bus_unclaimed_io_reads", running.pid());
    wait_until("it waits", || (host.value(&path) == Some(u64::from(2 * reads))).then_some(()));
    running
}

/// A guest that makes exits until it is ended.
fn busy(host: &Host, name: &'static str) -> Running {
    let steps = [Step::new(Op::In8, u32::MAX, NO_PORT), end(0)];
    let vmm = Vmm::new(Mode::Long, &steps).args(["--memory", "2M"]).called(name);
    let running = vmm.published_to(host).start();
    let path = format!("kvm/{}-{name}/user_exits", running.pid());
    wait_until("it runs", || host.value(&path).filter(|n| *n > 0));
    running
}

fn start(host: &Host, screen: &Screen, args: &[&str]) {
    screen.start(binary::statsfs(), &[&["top"], args].concat(), &host.mount());
}

/// The number in the column of that title, of the row that begins with a word.
fn cell(shown: &str, title: &str, first: &str) -> Option<f64> {
    let heads =
        shown.lines().find(|line| line.split_whitespace().any(|word| is_title(word, title)));
    // Numbers end where their titles do, or one before for the sign of the order.
    let head = heads?;
    let line = shown.lines().find(|line| line.split_whitespace().next() == Some(first))?;
    let at = head.find(title)?;
    let end = head[..at].chars().count() + title.len();
    let chars: Vec<char> = line.chars().collect();
    let end = (end..=end + 1).rev().find(|end| chars.get(end - 1).is_some_and(|c| *c != ' '))?;
    let begin = (0..end).rev().find(|n| chars[*n] == ' ')? + 1;
    number(&chars[begin..end].iter().collect::<String>())
}

fn is_title(word: &str, title: &str) -> bool {
    word.trim_end_matches(['▼', '▲']) == title
}

#[test]
fn what_is_shown_of_guests_is_what_they_do() {
    let host = Host::start();
    let steps = [
        Step::new(Op::In8, 4000, NO_PORT),
        Step::new(Op::Out8, 1000, NO_PORT),
        Step::new(Op::Spin, 1, 0),
    ];
    let (mut known, runs) = (waiting(&host, "known", READS, &steps), busy(&host, "runs"));
    let screen = Screen::new(80, 24);
    start(&host, &screen, &["-i", "0.5"]);

    // The busy one comes first. Its rate is that of its files, in the same time.
    screen.wait("both guests, the busy one first", |shown| {
        let at = |name: &str| shown.lines().position(|line| line.starts_with(name));
        (at("runs ")? < at("known ")?).then_some(())
    });
    let exits = format!("kvm/{}-runs/user_exits", runs.pid());
    let mut since = (Instant::now(), host.value(&exits).unwrap());
    wait_until("its rate", || {
        std::thread::sleep(std::time::Duration::from_millis(700));
        let now = (Instant::now(), host.value(&exits).unwrap());
        let rate = (now.1 - since.1) as f64 / (now.0 - since.0).as_secs_f64();
        since = now;
        let shown = cell(&screen.shown(), "EXITS/S", "runs")?;
        (shown / rate > 0.8 && shown / rate < 1.25).then_some(())
    });
    let shown = screen.shown();
    assert_eq!(cell(&shown, "EXITS/S", "known"), Some(0.0), "{shown}");
    assert_eq!(cell(&shown, "VCPUS", "known"), Some(2.0), "{shown}");
    assert!(shown.contains("guests 2  vCPUs 3  "), "{shown}");
    assert!(shown.contains("most io_in 100%"), "{shown}");
    // It is in the guest or handles exits, as far as it is let, and the other one waits in user space.
    screen.wait("shares of time", |shown| {
        let share = |title, name| cell(shown, title, name);
        let busy: f64 = ["GUEST%", "USER%", "STEAL%"]
            .iter()
            .map(|title| share(title, "runs"))
            .sum::<Option<f64>>()?;
        let waits = share("HALT%", "known")?;
        (busy > 80.0 && waits > 95.0).then_some(())
    });

    // Into the other one: all that it has counted, exactly, in its vCPUs and by reason.
    screen.text("/kno");
    screen.wait_for("/kno");
    screen.keys(&["Enter", "Enter"]);
    let shown = screen.wait_for("host › known");
    assert!(!shown.contains("runs "), "{shown}");
    let all = 2 * (WRITES + READS + 1);
    // The last write is being handled.
    let all = u64::from(all);
    let total = format!("total {},{:03}", all / 1000, all % 1000);
    let shown = screen.wait_for(&total);
    // Times are those of the interval: it handled exits before, and none in it.
    assert!(shown.contains(" p50 - "), "{shown}");
    screen.wait("its vCPUs", |shown| row(shown, "vcpu0").and(row(shown, "vcpu1")).map(|_| ()));
    screen.keys(&["Tab", "Tab"]);
    let reasons = screen.wait("the reasons", |shown| {
        Some([cell(shown, "TOTAL", "io_out")?, cell(shown, "TOTAL", "io_in")?])
    });
    assert_eq!(reasons, [f64::from(2 * WRITES + 2), f64::from(2 * READS)]);

    // From a zero of one's own on: what it does then, and the files show all the same.
    screen.keys(&["z"]);
    screen.wait("zero", |shown| (cell(shown, "TOTAL", "io_in")? == 0.0).then_some(()));
    screen.wait_for(" total 0 ");
    screen.keys(&["t"]);
    screen.wait_for("since the zero");
    known.release();
    let parts = screen.wait("what it did since", |shown| {
        let parts = ["TOTAL", "EXITS%"].map(|title| cell(shown, title, "io_in"));
        let all = cell(shown, "TOTAL", "io_out")? == 2000.0 && parts[0]? == 8000.0;
        all.then_some([parts[0]?, parts[1]?, cell(shown, "TOTAL", "(all)")?])
    });
    assert_eq!(parts, [8000.0, 80.0, 10_000.0]);
    screen.wait_for(" total 10,000 ");
    let path = |name: &str| format!("{}/{name}", known.machine());
    let reads = u64::from(2 * READS) + 8000;
    assert_eq!(host.value(&path("user_exit_io_in")), Some(reads), "nobody else's zero");
    screen.keys(&["q"]);
    screen.wait("the shell", |shown| shown.lines().next()?.starts_with('$').then_some(()));
    drop((known, runs));
}

#[test]
fn a_guest_that_ends_while_it_is_looked_at_is_gone_and_the_next_is_selected() {
    let host = Host::start();
    let guests = ["one", "two", "three"].map(|name| waiting(&host, name, READS, &[]));
    let screen = Screen::new(80, 24);
    start(&host, &screen, &["-i", "0.2"]);
    screen.wait_for("guests 3");
    // By name: one, three, two.
    screen.keys(&["<", "<", "<"]);
    screen.wait_for("GUEST▼");
    screen.keys(&["Down"]);
    screen.wait_for("2/3");
    let [one, two, three] = guests;
    three.kill_and_wait();
    screen.wait_for("guests 2");
    // Where it was, the next one is.
    screen.wait_for("2/2");
    screen.keys(&["Enter"]);
    let name = screen.wait("where one is", |shown| {
        let line = shown.lines().next()?;
        Some(line.split_once("› ")?.1.split_whitespace().next()?.to_owned())
    });
    assert_eq!(name, "two");
    screen.wait_for("total 1,902");
    // It ends while it is looked into, by one of its vCPUs.
    screen.keys(&["Enter"]);
    screen.wait_for("two › vcpu0");
    screen.wait_for("total 951");
    two.kill_and_wait();
    let shown = screen.wait_for("vcpu0 is gone: this is what was last seen");
    assert_eq!(cell(&shown, "TOTAL", "io_in"), Some(f64::from(READS)), "{shown}");
    screen.keys(&["Escape"]);
    screen.wait_for("two is gone");
    screen.keys(&["Escape"]);
    let shown = screen.wait("the rest", |shown| {
        (shown.contains("guests 1  ") && row(shown, "one").is_some()).then(|| shown.to_owned())
    });
    assert!(row(&shown, "two").is_none(), "{shown}");
    // What they counted is in the host's total.
    assert!(shown.contains("total 5,706"), "{shown}");
    screen.keys(&["q"]);
    one.kill_and_wait();
}

#[test]
fn a_mount_that_goes_is_said_to_be_gone_and_looked_at_again_when_it_is_back() {
    let mut host = Host::start();
    let guest = waiting(&host, "stays", READS, &[]);
    let screen = Screen::new(80, 24);
    start(&host, &screen, &["-i", "0.2"]);
    screen.wait_for("total 1,902");
    host.kill();
    let shown = screen.wait_for("the server of this mount is gone");
    // What was known is still there, and keys are answered.
    assert!(row(&shown, "stays").is_some(), "{shown}");
    screen.keys(&["?"]);
    screen.wait_for("keys and columns");
    screen.keys(&["Escape"]);
    host.start_again();
    screen.wait("it is back", |shown| {
        let is_back = !shown.contains("gone") && shown.contains("total 1,902");
        (is_back && row(shown, "stays").is_some()).then_some(())
    });
    screen.keys(&["q"]);
    guest.kill_and_wait();
}

/// The path of the command, and its arguments.
fn top(mount: &Path) -> String {
    format!("{} top --mount {}", binary::statsfs().display(), mount.display())
}

#[test]
fn the_terminal_is_as_it_was_however_it_ends() {
    let host = Host::start();
    let guest = waiting(&host, "one", READS, &[]);
    let screen = Screen::new(80, 24);
    let file = |name: &str| screen.beside(name);
    let pid = || -> Option<i32> { std::fs::read_to_string(file("pid")).ok()?.trim().parse().ok() };
    let kill = |signal: i32| {
        let pid = wait_until("its process", pid);
        // SAFETY: no pointers; the shell has not waited for it, or it would have said its status.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    };
    let ends: [(&str, &dyn Fn(), &str); 6] = [
        ("q", &|| screen.keys(&["q"]), "0"),
        ("^C", &|| screen.keys(&["C-c"]), "0"),
        ("SIGTERM", &|| kill(libc::SIGTERM), "143"),
        ("SIGINT", &|| kill(libc::SIGINT), "130"),
        ("SIGHUP", &|| kill(libc::SIGHUP), "129"),
        ("SIGQUIT", &|| kill(libc::SIGQUIT), "131"),
    ];
    for (end, how, status) in ends {
        let (before, after) = (file("before"), file("after"));
        for path in [&before, &after, &file("pid")] {
            let _ = std::fs::remove_file(path);
        }
        // A process that says its number becomes it.
        let command =
            format!("sh -c 'echo $$ > {}; exec {}'", file("pid").display(), top(&host.mount()));
        let stty = |path: &PathBuf| format!("stty -g > {}", path.display());
        screen.run(&format!("clear; ulimit -c 0; {}; {command}", stty(&before)));
        screen.wait_for("guests 1");
        assert_eq!(screen.about("#{alternate_on} #{mouse_any_flag} #{cursor_flag}"), "1 1 0");
        how();
        screen.wait("the shell", |shown| (!shown.contains("guests 1")).then_some(()));
        screen.run(&format!("echo status=$?; {}", stty(&after)));
        screen.wait_for(&format!("status={status}\n"));
        wait_until("the shell", || {
            std::fs::read_to_string(&after).ok().filter(|text| !text.is_empty())
        });
        let [before, after] = [before, after].map(|path| std::fs::read_to_string(path).unwrap());
        assert_eq!(before, after, "{end}");
        assert_eq!(
            screen.about("#{alternate_on} #{mouse_any_flag} #{cursor_flag}"),
            "0 0 1",
            "{end}"
        );
        assert!(!screen.shown().contains("guests 1"), "{end}");
    }
    // It stops, the shell is there, and it goes on.
    for stop in ["^Z", "SIGTSTP"] {
        let _ = std::fs::remove_file(file("pid"));
        let command =
            format!("sh -c 'echo $$ > {}; exec {}'", file("pid").display(), top(&host.mount()));
        screen.run(&format!("clear; {command}"));
        screen.wait_for("guests 1");
        if stop == "^Z" {
            screen.keys(&["C-z"])
        } else {
            kill(libc::SIGTSTP)
        }
        screen.wait_for("Stopped");
        assert_eq!(screen.about("#{alternate_on} #{cursor_flag}"), "0 1", "{stop}");
        screen.run("echo $((6 * 7)) is said");
        screen.wait_for("42 is said");
        screen.run("fg");
        screen.wait_for("guests 1");
        assert_eq!(screen.about("#{alternate_on} #{cursor_flag}"), "1 0", "{stop}");
        // It takes keys, and has the latest.
        screen.keys(&["q"]);
        screen.wait("the shell", |shown| (!shown.contains("guests 1")).then_some(()));
    }
    guest.kill_and_wait();
}

#[test]
fn what_is_missing_is_said_and_nothing_taken() {
    let host = Host::start();
    let mount = host.mount();
    for (args, part) in [(&["top"][..], "-1 writes one table"), (&["top", "-1", "-f", "("], "")] {
        let code = if part.is_empty() { 2 } else { 1 };
        if code == 1 {
            let line = complains(statsfs(&mount, args), code);
            assert!(line.contains(part) && line.contains("--log"), "{line}");
        } else {
            assert_eq!(statsfs(&mount, args).output().unwrap().status.code(), Some(2));
        }
    }
    let nowhere = host.beside("nowhere");
    for args in [&["top", "-1"][..], &["top", "--log", "-"]] {
        let line = complains(statsfs(&nowhere, args), 1);
        assert!(line.contains("nowhere is not there"), "{line}");
    }
    let line = complains(statsfs(&mount, &["top", "--log", "/nowhere/log"]), 1);
    assert!(line.contains("/nowhere/log can not be written"), "{line}");
    // On a terminal too, and it stays as it is.
    let screen = Screen::new(80, 24);
    screen.start(binary::statsfs(), &["top"], &nowhere);
    screen.wait_for("nowhere is not there");
    assert_eq!(screen.about("#{alternate_on}"), "0");
}

#[test]
fn colours_are_for_terminals_that_have_them_and_users_who_want_them() {
    let host = Host::start();
    let guest = waiting(&host, "one", READS, &[]);
    let screen = Screen::new(80, 24);
    let has = |text: &str, is: fn(u32) -> bool| {
        let parts = text.split('\x1b').skip(1).filter_map(|part| part.strip_prefix('['));
        let codes = parts.filter_map(|part| Some(part.split_once('m')?.0));
        let numbers = codes.flat_map(|codes| codes.split(';')).filter_map(|code| code.parse().ok());
        { numbers }.any(is)
    };
    // Foregrounds and backgrounds, but not the usual ones.
    let is_coloured = |text: &str| has(text, |n| matches!(n, 30..=38 | 40..=48 | 90..=107));
    let wait = || {
        screen.wait_for("guests 1");
        screen.wait("shares", |shown| cell(shown, "HALT%", "one").filter(|halt| *halt > 50.0));
        let text = screen.coloured();
        screen.keys(&["q"]);
        screen.wait("the shell", |shown| (!shown.contains("guests 1")).then_some(()));
        text
    };
    screen.run(&top(&host.mount()));
    assert!(is_coloured(&wait()));
    screen.run(&format!("NO_COLOR=1 {}", top(&host.mount())));
    let plain = wait();
    assert!(!is_coloured(&plain), "{plain:?}");
    // What is selected is seen all the same.
    assert!(has(&plain, |n| n == 7), "{plain:?}");
    // Where nothing can be done but writing, tables follow each other, in what goes to the terminal itself.
    let raw = screen.beside("raw");
    let command =
        format!("TERM=dumb script -qec '{} -i 0.2' {}", top(&host.mount()), raw.display());
    screen.run(&command);
    let text = wait_until("two tables", || {
        let text = std::fs::read_to_string(&raw).ok()?;
        (text.matches("GUEST%").count() >= 2).then_some(text)
    });
    screen.keys(&["C-c"]);
    assert!(!text.contains('\x1b'), "{text:?}");
    assert!(text.lines().any(|line| line.starts_with("one ")), "{text}");
    // None is broken by the end of the line.
    let tables = || text.lines().filter(|line| !line.starts_with("Script "));
    assert!(tables().all(|line| line.trim_end().chars().count() <= 80), "{text}");
    guest.kill_and_wait();
}
