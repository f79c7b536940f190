//! The page of `statsfs report` in a browser: it draws, tells what is at the pointer, sorts, selects, and runs nothing that is
//! in a name. `STATSFS_SCREENSHOTS=DIR` keeps what it looks like there, as PNGs in base64.

use std::path::Path;
use std::time::SystemTime;

use serde_json::{Value as Json, json};
use statsfs::fs::MountOptions;
use statsfs::snapshot::Snapshot;
use statsfs::snapshot::recording::{About, Writer};
use statsfs::{Embedded, Registry};
use tests::chromium::Chromium;
use tests::command::said;
use tests::guest::{Mode, NO_MEMORY, NO_PORT, Op, Step};
use tests::host::Host;
use tests::record::{Data, Recorder, report, sum};
use tests::running::{Running, wait_until};
use tests::vmm::Vmm;

/// A guest that makes so many reads for each ten writes, and a read of memory, for ever.
fn busy(host: &Host, reads: u32) -> Running {
    let steps = [
        Step::new(Op::Out8, 10, NO_PORT),
        Step::new(Op::In8, reads, NO_PORT),
        Step::new(Op::Read8, 1, NO_MEMORY),
        Step::new(Op::Again, 1, 0),
    ];
    let running = Vmm::new(Mode::Long, &steps).args(["--memory", "2M"]).published_to(host).start();
    let exits = format!("{}/user_exits", running.machine());
    wait_until("exits", || host.value(&exits).filter(|n| *n > 100));
    running
}

/// Makes a page of a recording.
fn page(file: &Path) -> (std::path::PathBuf, Data) {
    let page = file.with_extension("html");
    assert_eq!(said(report(file, &["-o", page.to_str().unwrap()])), "");
    let data = Data::in_page(&std::fs::read_to_string(&page).unwrap());
    (page, data)
}

/// Keeps what is seen, if that is wanted.
fn keep(browser: &mut Chromium, name: &str) {
    let shot = browser.screenshot();
    assert!(shot.len() > 10_000, "something is seen");
    if let Some(dir) = std::env::var_os("STATSFS_SCREENSHOTS") {
        std::fs::write(Path::new(&dir).join(format!("{name}.png.b64")), shot).unwrap();
    }
}

fn floats(list: &Json) -> Vec<f64> {
    list.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

/// A number as a person reads it.
fn read(text: &str) -> f64 {
    let digits: String =
        text.chars().take_while(|c| c.is_ascii_digit() || ",.".contains(*c)).collect();
    digits.replace(',', "").parse().unwrap_or_else(|_| panic!("no number: {text:?}"))
}

/// The lines of the cursor's text: what, and how much.
fn told(browser: &mut Chromium) -> Vec<(String, String)> {
    assert_eq!(browser.eval("document.getElementById('tip').hidden"), json!(false));
    let rows = browser.eval(
        "[...document.querySelectorAll('#tip tr')].map(row => [...row.cells].map(cell => cell.textContent))",
    );
    let text = |cell: &Json| cell.as_str().unwrap().to_owned();
    rows.as_array().unwrap().iter().map(|row| (text(&row[0]), text(&row[1]))).collect()
}

/// The place in a chart of the middle of a column.
fn middle(browser: &mut Chromium, data: &Data, card: &str, column: usize, left: f64) -> f64 {
    let (start, end) = (floats(&data.0["start"]), floats(&data.0["end"]));
    let (first, last) = (start[0], end[end.len() - 1]);
    let [x, _, width, _] = browser.place(&format!("document.querySelector('#{card} .chart')"));
    let at = (start[column] + end[column]) / 2.0;
    x + left + (at - first) / (last - first) * (width - left - 8.0)
}

#[test]
fn the_page_draws_tells_sorts_and_selects() {
    let host = Host::start();
    let guests = [busy(&host, 3), busy(&host, 30)];
    let file = host.beside("recording");
    let recorder = Recorder::start(&host.mount(), &file, &["--interval", "0.1"]);
    (0..5).for_each(|_| recorder.wait_for_looks());
    assert_eq!(recorder.end(libc::SIGTERM), (Some(0), String::new()));
    let (page, data) = page(&file);
    let whole = &data.parts()[0];

    let mut browser = Chromium::start();
    browser.look(1280, 900, "light");
    browser.open(&page);
    browser.assert_quiet();
    // All three charts have something, of some height.
    for (marks, least) in [
        ("#rates .area", data.reasons().count()),
        ("#cpu .area", 1),
        ("#heat rect[class^=h]", data.0["end"].as_array().unwrap().len()),
        ("#tiles dd", 5),
        ("#overview tbody tr", 3),
        ("#reasons tbody tr", 6),
    ] {
        let drawn = format!(
            "[...document.querySelectorAll({marks:?})].filter(e => {{ const b = e.getBoundingClientRect(); \
             return b.width > 0 && b.height > 0; }}).length"
        );
        let drawn = browser.number(&drawn);
        assert!(drawn >= least as f64, "{marks}: {drawn}");
    }
    keep(&mut browser, "light");

    // The cursor says what was counted where it is.
    let (start, end) = (floats(&data.0["start"]), floats(&data.0["end"]));
    let column = start.len() / 2;
    let seconds = end[column] - start[column];
    let x = middle(&mut browser, &data, "rates", column, 52.0);
    let [_, top, _, height] = browser.place("document.querySelector('#rates .chart')");
    browser.point((x, top + height / 2.0));
    let rows = told(&mut browser);
    assert_eq!(rows.len(), data.reasons().count() + 1, "{rows:?}");
    let mut all = 0.0;
    for reason in data.reasons() {
        let count = data.line(whole, reason).unwrap()[column].as_f64().unwrap();
        let (_, told) = rows.iter().find(|(what, _)| what == reason).unwrap();
        assert!(
            (read(told) - count / seconds).abs() <= 0.51,
            "{reason}: {told}, {count} in {seconds}"
        );
        all += count / seconds;
    }
    let (what, told_all) = rows.last().unwrap();
    assert!(what == "all" && (read(told_all) - all).abs() <= 0.51, "{what}: {told_all}, not {all}");
    // Away from it nothing is told.
    browser.point((2.0, 2.0));
    assert_eq!(browser.eval("document.getElementById('tip').hidden"), json!(true));

    // So does that of the heat map: in the middle of a row that has something, exactly.
    let heat = whole["heat"].as_object().unwrap();
    let rows: Vec<usize> = heat.keys().map(|bucket| bucket.parse().unwrap()).collect();
    let (low, high) = (*rows.iter().min().unwrap(), *rows.iter().max().unwrap());
    let most = rows.iter().max_by_key(|row| heat[&row.to_string()][column].as_u64()).unwrap();
    let x = middle(&mut browser, &data, "heat", column, 58.0);
    let [_, top, _, height] = browser.place("document.querySelector('#heat .chart')");
    let size = (height - 28.0) / (high - low + 1) as f64;
    let y = top + height - 20.0 - ((most - low) as f64 + 0.5) * size;
    browser.point((x, y));
    let rows = told(&mut browser);
    let count = heat[&most.to_string()][column].as_u64().unwrap();
    let of: u64 = heat.values().map(|line| line[column].as_u64().unwrap()).sum();
    let (_, exits) = rows.iter().find(|(what, _)| what == "exits").unwrap();
    let (one, other) = exits.split_once(" of ").unwrap();
    assert_eq!((read(one), read(other)), (count as f64, of as f64), "{exits}");
    assert!(count > 0);
    keep(&mut browser, "cursor");

    // With the keyboard, too.
    browser.point((2.0, 2.0));
    browser.eval("document.querySelector('#rates .chart').focus()");
    browser.press("End");
    let last = told(&mut browser);
    browser.press("ArrowLeft");
    assert_ne!(told(&mut browser), last);
    browser.press("Escape");
    assert_eq!(browser.eval("document.getElementById('tip').hidden"), json!(true));

    sorts(&mut browser);
    selects(&mut browser, &data);
    fits(&mut browser);
    browser.assert_quiet();
    for guest in guests {
        guest.signal(libc::SIGTERM);
        assert_eq!(guest.wait().code(), 143);
    }
}

/// A click on a heading sorts by it; another one the other way round.
fn sorts(browser: &mut Chromium) {
    let column = |browser: &mut Chromium, n: usize| {
        let cells = format!(
            "[...document.querySelectorAll('#reasons tbody tr')].map(row => row.cells[{n}].dataset.v ?? row.cells[{n}].textContent)"
        );
        let cells = browser.eval(&cells);
        let cells: Vec<_> = cells
            .as_array()
            .unwrap()
            .iter()
            .map(|cell| cell.as_str().unwrap().to_owned())
            .collect();
        cells
    };
    for n in [2, 3, 7] {
        let head = format!("document.querySelector('#reasons').tHead.rows[0].cells[{n}]");
        for is_down in [true, false] {
            browser.click(&format!("{head}.firstChild"));
            let numbers =
                column(browser, n).iter().map(|text| text.parse().unwrap()).collect::<Vec<f64>>();
            assert!(numbers.len() > 3 && numbers[0] != numbers[numbers.len() - 1]);
            let mut sorted = numbers.clone();
            sorted.sort_by(|a, b| if is_down { b.total_cmp(a) } else { a.total_cmp(b) });
            assert_eq!(numbers, sorted, "column {n}, down {is_down}");
            let state = browser.text(&format!("{head}.getAttribute('aria-sort')"));
            assert_eq!(state, if is_down { "descending" } else { "ascending" });
        }
    }
    browser.click("document.querySelector('#reasons').tHead.rows[0].cells[1].firstChild");
    let words = column(browser, 1);
    assert!(words.is_sorted() && words[0] != words[words.len() - 1], "{words:?}");
    let marked = "document.querySelectorAll('#reasons [aria-sort]').length";
    assert_eq!(browser.number(marked), 1.0);
}

/// A guest that is selected is in the charts, the tiles and the tables.
fn selects(browser: &mut Chromium, data: &Data) {
    let drawn = "document.querySelector('#rates .area').getAttribute('d')";
    let of_all = browser.text(drawn);
    let guest = &data.parts()[1];
    browser.click("document.querySelector('#overview tr[data-part=\"1\"] button')");
    assert_eq!(browser.text("document.getElementById('part').value"), "1");
    assert_ne!(browser.text(drawn), of_all);
    let exits: u64 = data.reasons().map(|reason| data.exits(guest, reason)).sum();
    let (start, end) = (floats(&data.0["start"]), floats(&data.0["end"]));
    let seconds: f64 = start.iter().zip(&end).map(|(start, end)| end - start).sum();
    let tile = browser.text("document.querySelector('#tiles dd').textContent");
    assert!((read(&tile) - exits as f64 / seconds).abs() <= 0.51, "{tile}: {exits} in {seconds}");
    let rows = "[...document.querySelectorAll('#reasons tbody tr')].filter(row => row.offsetHeight > 0).map(row => +row.dataset.part)";
    assert_eq!(browser.eval(rows), json!([1, 1, 1]));
    keep(browser, "guest");

    // Other charts of it, and all guests beside each other.
    for (n, title) in [(1, "Handling exits"), (2, "What KVM counts"), (3, "by guest")] {
        browser.click(&format!("document.getElementById('metric').children[{n}]"));
        let now = browser.text("document.getElementById('rates-title').textContent");
        assert!(now.contains(title), "{now}");
        let lines =
            browser.number("document.querySelectorAll('#rates .area, #rates .step').length");
        assert!(lines >= 1.0, "{title}");
    }
    assert_eq!(browser.text("document.getElementById('part').value"), "0");
    let names = browser
        .eval("[...document.querySelectorAll('#rates .legend button')].map(b => b.textContent)");
    let names = names.as_array().unwrap().clone();
    assert_eq!(names[..2], [data.parts()[1]["name"].clone(), data.parts()[2]["name"].clone()]);
    // What is switched off in the legend is not drawn.
    let areas = "document.querySelectorAll('#rates .area').length";
    let before = browser.number(areas);
    browser.click("document.querySelector('#rates .legend button')");
    assert_eq!(browser.number(areas), before - 1.0);
    browser.click("document.querySelector('#rates .legend button')");
    assert_eq!(browser.number(areas), before);
    browser.click("document.getElementById('metric').children[0]");
    assert_eq!(browser.text(drawn), of_all);
}

/// Wide or narrow, dark or light, it fits; and without scripts there are tables.
fn fits(browser: &mut Chromium) {
    let background = "getComputedStyle(document.body).backgroundColor";
    let light = browser.text(background);
    for (width, scheme) in [(1280, "dark"), (400, "light"), (400, "dark")] {
        browser.look(width, 900, scheme);
        browser.eval("scrollTo(0, 0)");
        assert_eq!(browser.text(background) == light, scheme == "light");
        let over = "document.documentElement.scrollWidth - document.documentElement.clientWidth";
        assert_eq!(browser.number(over), 0.0, "at {width}");
        let narrow = "Math.max(...[...document.querySelectorAll('.chart svg')].map(e => e.getBoundingClientRect().right))";
        assert!(browser.number(narrow) <= f64::from(width));
        keep(browser, &format!("{width}-{scheme}"));
    }
    browser.call("Emulation.setScriptExecutionDisabled", json!({"value": true}));
    browser.call("Page.reload", json!({}));
    wait_until("it is there again", || {
        let drawn = browser.eval("document.querySelectorAll('#overview tbody tr').length");
        let charts = browser.eval("document.querySelectorAll('.chart svg').length");
        (drawn.as_u64() >= Some(3) && charts == 0).then_some(())
    });
    let shown = "[...document.querySelectorAll('.js')].filter(e => e.offsetHeight > 0).length";
    assert_eq!(browser.number(shown), 0.0);
    assert!(browser.number("document.getElementById('reasons').offsetHeight") > 50.0);
    browser.call("Emulation.setScriptExecutionDisabled", json!({"value": false}));
    let page = browser.text("location.pathname");
    browser.open(Path::new(&page));
}

statsfs::stats! {
    /// What a vCPU counts that is none.
    struct Vcpu: "vcpu" {
        /// Exits.
        user_exits: Counter,
        /// Exits for reads.
        user_exit_io_in: Counter,
    }
}

#[test]
fn names_and_labels_are_text_whatever_is_in_them() {
    const EVIL: &str = "</script><img src=x onerror='evil=1'>\"{{data}}<!--";
    let registry = Registry::new().unwrap();
    let top = registry.create_source("kvm").unwrap();
    let guest = registry.source("web1").label("note", EVIL).create().unwrap();
    let vcpu = registry.create_source("vcpu0").unwrap();
    let slot = vcpu.add_values::<Vcpu>().unwrap();
    guest.add_subordinate(&vcpu).unwrap();
    top.add_subordinate(&guest).unwrap();
    top.register().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mount = dir.path().join("mount");
    let mounted = Embedded::mount(&registry, &mount, MountOptions::new()).unwrap();
    let file = dir.path().join("recording");
    let about = About {
        host: EVIL.into(),
        kernel: EVIL.into(),
        program: EVIL.into(),
        dir: EVIL.into(),
        interval_ns: 1,
    };
    let mut writer = Writer::new(std::fs::File::create_new(&file).unwrap(), &about).unwrap();
    for n in 0..3 {
        slot.user_exits.add(7);
        slot.user_exit_io_in.add(7);
        writer.snapshot(&Snapshot::read(&mount).unwrap()).unwrap();
        if n == 1 {
            writer.gap(SystemTime::now(), EVIL).unwrap();
        }
    }
    writer.end(SystemTime::now()).unwrap();
    mounted.unmount().unwrap();

    let (page, data) = page(&file);
    assert_eq!(data.exits(data.part("web1"), "io_in"), 14);
    let gaps: Vec<Json> = data.0["gaps"].as_array().unwrap().clone();
    assert_eq!((gaps, sum(data.line(&data.parts()[0], "io_in").unwrap())), (vec![json!(1)], 14));
    let mut browser = Chromium::start();
    browser.open(&page);
    browser.assert_quiet();
    assert_eq!(browser.text("document.title"), format!("Guests of {EVIL}"));
    assert_eq!(browser.number("document.images.length"), 0.0);
    assert_eq!(browser.number("document.scripts.length"), 2.0);
    assert_eq!(browser.text("typeof evil"), "undefined");
    let facts = browser.text("document.querySelector('.facts').textContent");
    assert_eq!(facts.matches(EVIL).count(), 4, "{facts}");
    assert!(browser.text("document.querySelector('.note').textContent").ends_with(EVIL));
    let label = browser.text("document.querySelector('#reasons tbody td').title");
    assert_eq!(label, format!("kvm/web1 note={EVIL}"));
    // What would get in all the same is not run: it does not know the page's nonce.
    browser.eval("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"evil=1\">')");
    browser.eval(
        "document.body.append(Object.assign(document.createElement('script'), {text: 'evil=1'}))",
    );
    wait_until("it is forbidden", || {
        let _ = browser.eval("0");
        (browser.events_of("Log.entryAdded").len() >= 2).then_some(())
    });
    assert_eq!(browser.text("typeof evil"), "undefined");
}
