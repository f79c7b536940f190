//! `statsfs record`, and the numbers that `statsfs report` makes of it: of guests whose counts are known, while they come and go,
//! counts are cleared, the server is killed, the disk is full, and the recorder itself is killed.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value as Json;
use statsfs::snapshot::Snapshot;
use statsfs::snapshot::recording::Content;
use tests::binary;
use tests::command::{complains, json, said, statsfs};
use tests::guest::{Mode, NO_PORT, Op, Step, end, park};
use tests::host::Host;
use tests::namespace::{mount_with, private};
use tests::record::{Data, Recorder, frames, report};
use tests::running::{Running, wait_until};
use tests::vmm::Vmm;

/// Writes that each guest makes before it waits.
const WRITES: u32 = 700;

/// A guest of one vCPU that makes so many reads, waits until its console is taken, and makes some more.
fn waiting(host: &Host, reads: u32, later: u32) -> Running {
    let steps = [
        Step::new(Op::Out8, WRITES, NO_PORT),
        Step::new(Op::In8, reads, NO_PORT),
        park(),
        Step::new(Op::In8, later, NO_PORT),
        end(0),
    ];
    let vmm = Vmm::new(Mode::Long, &steps).args(["--memory", "2M"]);
    let running = vmm.published_to(host).blocked_console().start();
    let path = format!("{}/user_exits", running.machine());
    // The last one is that of the console.
    let exits = u64::from(WRITES + reads + 1);
    wait_until("it waits", || (host.value(&path) == Some(exits)).then_some(()));
    running
}

/// What is in the embedded JSON of all guests is what is in it of each and of the others.
fn assert_adds_up(data: &Data) {
    let (whole, parts) = data.parts().split_first().unwrap();
    for reason in data.reasons() {
        let of_parts: u64 = parts.iter().map(|part| data.exits(part, reason)).sum();
        assert_eq!(data.exits(whole, reason), of_parts, "{reason}");
    }
}

/// The numbers of a row of a table.
fn row<'p>(page: &'p str, table: &str, words: &[&str]) -> Vec<&'p str> {
    let (_, rest) = page.split_once(&format!("<table id=\"{table}\">")).unwrap();
    let table = rest.split_once("</table>").unwrap().0;
    let mut rows = table.split("<tr").skip(1);
    let is_it = |row: &&str| words.iter().all(|word| row.contains(&format!(">{word}</td>")));
    let row = rows.find(is_it).unwrap_or_else(|| panic!("no {words:?}"));
    row.split("data-v=\"").skip(1).map(|rest| rest.split_once('"').unwrap().0).collect()
}

#[test]
fn a_report_has_exactly_what_guests_counted_whatever_comes_goes_and_is_cleared() {
    let host = Host::start();
    let stays = waiting(&host, 10, 0);
    let file = host.beside("recording");
    let recorder = Recorder::start(&host.mount(), &file, &["--interval", "0.05"]);
    // One comes and goes, perhaps between two looks; all is cleared; one comes and stays.
    host.finish(waiting(&host, 50, 8));
    std::fs::write(host.mount().join("kvm/.stats/clear"), "0").unwrap();
    host.finish(waiting(&host, 7, 0));
    let comes = waiting(&host, 300, 0);
    recorder.wait_for_looks();
    std::fs::write(host.mount().join("kvm/user_exits"), "0").unwrap();
    assert_eq!(recorder.end(libc::SIGINT), (Some(0), String::new()));

    let page = said(report(&file, &["-o", "-"]));
    let data = Data::in_page(&page);
    let whole = &data.parts()[0];
    assert_eq!(data.exits(whole, "io_in"), 50 + 8 + 7 + 300);
    // All wrote, waited for their console, and two ended.
    assert_eq!(data.exits(whole, "io_out"), u64::from(3 * WRITES) + 3 + 2);
    assert_eq!(data.reasons().collect::<Vec<_>>(), ["io_out", "io_in"]);
    let new = data.part(&comes.machine());
    assert_eq!((data.exits(new, "io_in"), data.exits(new, "io_out")), (300, u64::from(WRITES) + 1));
    let old = data.part(&stays.machine());
    assert_eq!((data.exits(old, "io_in"), data.exits(old, "io_out")), (0, 0), "it did nothing");
    assert_adds_up(&data);
    // Each exit was handled in some time, but for the last ones of those that wait.
    let heat: u64 = whole["heat"].as_object().unwrap().values().map(numbers).sum();
    let all = 365 + u64::from(3 * WRITES) + 5;
    assert_eq!(heat, all - 1);
    // And it is where the files have it: in each bucket what came between the first look and the last.
    let looks = frames(&file).into_iter().filter_map(|frame| match frame.content {
        Content::Snapshot(look) => Some(look),
        Content::Gap(_) => None,
    });
    let looks: Vec<_> = looks.collect();
    let buckets = |look: &Snapshot| -> Vec<u64> {
        let value = look.dir("kvm").unwrap().value("user_handle_time").unwrap();
        value.raw_histogram().unwrap().buckets().map(|(_, count)| count).collect()
    };
    let [first, last] = [&looks[0], looks.last().unwrap()].map(buckets);
    for (n, (before, after)) in first.iter().zip(last).enumerate() {
        assert_eq!(
            whole["heat"].get(n.to_string()).map_or(0, numbers),
            after - before,
            "bucket {n}"
        );
    }

    // The table says the same: exits, a second, share.
    let name = format!("test ({})", comes.pid());
    let cells = row(&page, "reasons", &[&name, "io_in"]);
    assert_eq!(cells[0], "300");
    let share: f64 = cells[2].parse().unwrap();
    assert!((share - 300.0 / all as f64).abs() < 1e-9, "{share}");
    let there: f64 = row(&page, "overview", &[&name])[3].parse().unwrap();
    let rate: f64 = cells[1].parse().unwrap();
    assert!((rate * there - 300.0).abs() < 0.3, "{rate} a second for {there} s");
    assert_eq!(row(&page, "reasons", &["All guests", "all"])[0], all.to_string());

    // Told apart or not, it is the same in all.
    let few = Data::in_page(&said(report(&file, &["-o", "-", "--guests", "1"])));
    assert_eq!(few.parts().len(), 3);
    assert_eq!(few.exits(&few.parts()[0], "io_in"), 365);
    assert_adds_up(&few);
    host.finish(comes);
    host.finish(stays);
}

fn numbers(line: &Json) -> u64 {
    tests::record::sum(line.as_array().unwrap())
}

#[test]
fn a_server_that_is_killed_and_started_again_is_a_gap_and_no_count_is_lost() {
    let mut host = Host::start();
    let guest = waiting(&host, 20, 500);
    let file = host.beside("recording");
    let recorder = Recorder::start(&host.mount(), &file, &["--interval", "0.05"]);
    recorder.wait_for_looks();
    host.kill();
    recorder.wait_for(1, |frame| matches!(frame.content, Content::Gap(_)));
    host.start_again();
    let machine = host.mount().join(guest.machine());
    wait_until("it is back", || machine.exists().then_some(()));
    recorder.wait_for_looks();
    host.finish(guest);
    recorder.wait_for_looks();
    assert_eq!(recorder.end(libc::SIGTERM), (Some(0), String::new()));

    let gaps = frames(&file).iter().filter(|f| matches!(f.content, Content::Gap(_))).count();
    assert!((1..4).contains(&gaps), "it is told once: {gaps}");
    let page = said(report(&file, &["-o", "-"]));
    assert!(page.contains("Nothing was seen from "), "{page}");
    let data = Data::in_page(&page);
    assert!(!data.0["gaps"].as_array().unwrap().is_empty());
    // What it counted before the first look is not counted when it comes back.
    assert_eq!(data.exits(&data.parts()[0], "io_in"), 500);
    assert_adds_up(&data);
}

#[test]
fn a_recording_that_is_killed_cut_or_damaged_is_read_as_far_as_it_is_whole() {
    let host = Host::start();
    let guest = waiting(&host, 20, 0);
    let file = host.beside("recording");
    let recorder = Recorder::start(&host.mount(), &file, &["--interval", "0.05"]);
    let new = waiting(&host, 77, 0);
    recorder.wait_for_looks();
    // It is read while it goes on.
    assert_eq!(Data::of(&file).exits(&Data::of(&file).parts()[0], "io_in"), 77);
    assert_eq!(recorder.end(libc::SIGKILL), (None, String::new()));
    let page = said(report(&file, &["-o", "-"]));
    assert!(page.contains("The recording has no end"));

    // The other tools take its end, and what came between its ends.
    let path = file.to_str().unwrap();
    let tool = |args: &[&str]| {
        let mut command = Command::new(binary::statsfs());
        command.args(args);
        command
    };
    let dump = json(tool(&["dump", path, "--format", "json"]));
    assert_eq!(dump["kvm"]["bus_unclaimed_io_reads"], 97);
    let diff = json(tool(&["diff", path, "--json"]));
    let mut changes = diff["changes"].as_array().unwrap().iter();
    let is_it = |change: &&Json| change["path"] == "kvm" && change["name"] == "user_exit_io_in";
    assert_eq!(changes.find(is_it).unwrap()["increase"], 77);
    assert!(said(tool(&["ls", path])).contains(&new.machine()));
    let same = said(tool(&["diff", path, path]));
    assert!(same.contains("Nothing changed."), "{same}");

    let whole = std::fs::metadata(&file).unwrap().len();
    let changed = OpenOptions::new().write(true).open(&file).unwrap();
    changed.set_len(whole - 5).unwrap();
    let output = report(&file, &["-o", "-"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("ends in the middle of a frame") && said.lines().count() == 1, "{said}");
    let page = String::from_utf8(output.stdout).unwrap();
    assert!(page.contains("ends in the middle of a frame"));
    assert_eq!(Data::in_page(&page).parts()[0]["path"], "kvm");
    changed.write_all_at(&[0xff; 8], whole / 2).unwrap();
    let line = complains(report(&file, &["-o", "-"]), 1);
    assert!(line.contains(path) && line.contains("is damaged: "), "{line}");
    assert!(line.contains(" at byte "), "{line}");
    host.finish(new);
    host.finish(guest);
}

#[test]
fn a_recording_of_a_guest_has_its_vcpus_and_ends_in_time() {
    let host = Host::start();
    let steps = [Step::new(Op::Out8, 1, NO_PORT).per_index(1), Step::new(Op::Again, 1, 0)];
    let vmm = Vmm::new(Mode::Long, &steps).cpus(2).args(["--memory", "2M"]);
    let guest = vmm.published_to(&host).start();
    let machine = guest.machine();
    let exits = format!("{machine}/user_exits");
    wait_until("exits", || host.value(&exits).filter(|n| *n > 0));
    let file = host.beside("recording");
    let path = file.to_str().unwrap();
    let args = ["record", path, &machine, "--seconds", "1", "--interval", "0.2"];
    let before = host.value(&exits).unwrap();
    assert_eq!(said(statsfs(&host.mount(), &args)), "");
    let after = host.value(&exits).unwrap();
    let looks = frames(&file).len();
    assert!((2..=6).contains(&looks), "{looks}");
    let data = Data::of(&file);
    assert_eq!(data.0["unit"], "vCPU");
    let whole = data.exits(&data.parts()[0], "io_out");
    assert!(whole > 0 && whole <= after - before, "{whole} of {}", after - before);
    assert_eq!(
        data.exits(data.part("vcpu0"), "io_out") + data.exits(data.part("vcpu1"), "io_out"),
        whole
    );
    let last = data.0["end"].as_array().unwrap().last().unwrap().as_f64().unwrap();
    assert!(last > 0.9, "{last}");
    // The one that is there is not written over unless that is wanted.
    let line = complains(statsfs(&host.mount(), &args), 1);
    assert!(line.contains("is there already: --force"), "{line}");
    assert_eq!(frames(&file).len(), looks);
    let again = ["record", path, "kvm", "--seconds", "0.05", "--interval", "0.05", "--force"];
    said(statsfs(&host.mount(), &again));
    assert_eq!(frames(&file).len(), 2);
    guest.signal(libc::SIGTERM);
    assert_eq!(guest.wait().code(), 143);
}

#[test]
fn a_full_disk_ends_a_recording_that_can_be_read() {
    let host = Host::start();
    let guest = waiting(&host, 20, 0);
    private(|| {
        let disk = host.beside("disk");
        std::fs::create_dir(&disk).unwrap();
        mount_with("statsfs-test", &disk, "tmpfs", "size=256k").expect("a tmpfs can be mounted");
        let file = disk.join("recording");
        let args = ["record", file.to_str().unwrap(), "--interval", "0.01"];
        let line = complains(statsfs(&host.mount(), &args), 1);
        let all = frames(&file);
        let looks = format!("has {} whole looks", all.len());
        assert!(all.len() >= 2 && line.contains(&looks), "{looks}: {line}");
        assert!(line.contains("No space left on device"), "{line}");
        assert_eq!(Data::of(&file).exits(&Data::of(&file).parts()[0], "io_in"), 0);
        // Where there is no room for a beginning, nothing is left that is in the way.
        let page = disk.join("page");
        complains(report(&file, &["-o", page.to_str().unwrap()]), 1);
        assert!(!page.exists());
        let fill = |room: &Path| std::fs::write(room, vec![1; 1 << 20]).unwrap_err();
        fill(&disk.join("room"));
        let other = disk.join("other");
        complains(statsfs(&host.mount(), &["record", other.to_str().unwrap()]), 1);
        assert!(!other.exists());
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut ls = statsfs(&host.mount(), &["ls"]);
        let output = ls.stdout(full).output().unwrap();
        let line = String::from_utf8(output.stderr).unwrap();
        assert!(line.contains("the standard output can not be written: No space"), "{line}");
    });
    host.finish(guest);
}

#[test]
fn a_report_is_written_over_an_older_one_and_over_nothing_else() {
    let host = Host::start();
    let guest = waiting(&host, 20, 0);
    let file = host.beside("recording");
    let path = file.to_str().unwrap();
    said(statsfs(&host.mount(), &["record", path, "--seconds", "0.01", "--interval", "0.01"]));
    let page = host.beside("page");
    let to = ["-o", page.to_str().unwrap()];
    for before in ["", "<!DOCTYPE html>\n<meta name=\"generator\" content=\"statsfs 0.0.1\">"] {
        std::fs::write(&page, before).unwrap();
        assert_eq!(said(report(&file, &to)), "");
        assert_eq!(said(report(&file, &to)), "");
        assert_eq!(std::fs::read_to_string(&page).unwrap(), said(report(&file, &["-o", "-"])));
    }
    let whole = std::fs::read(&file).unwrap();
    for mine in [path, host.beside("notes").to_str().unwrap()] {
        if mine != path {
            std::fs::write(mine, "mine").unwrap();
        }
        let before = std::fs::read(mine).unwrap();
        let line = complains(report(&file, &["-o", mine]), 1);
        assert!(line.contains("is there already") && line.contains("--force"), "{line}");
        assert_eq!(std::fs::read(mine).unwrap(), before);
    }
    assert_eq!(std::fs::read(&file).unwrap(), whole);
    let notes = host.beside("notes");
    assert_eq!(said(report(&file, &["-o", notes.to_str().unwrap(), "--force"])), "");
    assert!(std::fs::read_to_string(&notes).unwrap().starts_with("<!DOCTYPE"));
    host.finish(guest);
}

#[test]
fn what_can_not_be_recorded_or_reported_is_said() {
    let mut host = Host::start();
    let mount = host.mount();
    let file = host.beside("recording");
    let path = file.to_str().unwrap();
    let snapshot = host.beside("snapshot");
    std::fs::copy(mount.join("statsfs/server_processes"), host.beside("empty")).unwrap();
    std::fs::write(&snapshot, std::fs::read(mount.join(".stats/snapshot")).unwrap()).unwrap();
    let saved = snapshot.to_str().unwrap();
    for (mount, args, part) in [
        (host.beside("nowhere"), &["record", path][..], "nowhere is not there"),
        (Path::new("/etc").to_owned(), &["record", path], "/etc is in no mounted statsfs tree"),
        (mount.clone(), &["record", path, "kvm/1-nobody"], "kvm/1-nobody is not there"),
        (mount.clone(), &["record", path, saved], "is a file"),
        (mount.clone(), &["record", "/nowhere/x"], "/nowhere/x can not be written"),
        (mount.clone(), &["record", saved], "is there already: --force"),
    ] {
        let line = complains(statsfs(&mount, args), 1);
        assert!(line.contains(part), "{part} in {line}");
        assert!(!file.exists(), "{args:?}");
    }
    let server = ["record", path, "statsfs", "--seconds", "0.05"];
    said(statsfs(&mount, &server));
    for (file, part) in [
        (file.as_path(), "no guests: `statsfs diff "),
        (&snapshot, "this is no recording"),
        (&host.beside("empty"), "this is no recording"),
        (Path::new("/nowhere/x"), "No such file"),
        (&mount, "Is a directory"),
    ] {
        let line = complains(report(file, &["-o", "-"]), 1);
        assert!(line.contains(part) && line.contains(file.to_str().unwrap()), "{part} in {line}");
    }
    let line = complains(report(&snapshot, &["-o", "/nowhere/x"]), 1);
    assert!(line.contains("no recording"), "{line}");
    for args in
        [&["record"][..], &["record", "x", "--interval", "0"], &["report"], &["diff", saved]]
    {
        let output = Command::new(binary::statsfs()).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
    }
    host.kill();
    let line = complains(statsfs(&mount, &["record", path, "--force"]), 1);
    assert!(line.contains("the server of this mount is gone"), "{line}");
    assert_eq!(frames(&file).len(), 2, "what was there is not written over by nothing");
}
