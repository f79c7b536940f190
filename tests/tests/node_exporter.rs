//! node_exporter's textfile collector takes what the timer's service writes, and serves what it says.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use tests::guest::{Mode, NO_PORT, Op, Step, end, park};
use tests::host::Host;
use tests::http::ask;
use tests::running::wait_until;
use tests::tools;
use tests::vmm::Vmm;

const SERVICE: &str = include_str!("../../resources/systemd/statsfs-textfile.service");

/// Does what the service does, for this mount and in this directory.
fn write_textfile(mount: &Path, directory: &Path) -> ExitStatus {
    let start = SERVICE.lines().find_map(|line| line.strip_prefix("ExecStart=/bin/sh -c '"));
    let script = start.and_then(|rest| rest.strip_suffix('\'')).expect("a shell's script");
    // systemd would take these for its own.
    assert!(!script.contains(['$', '%', '\\', '\'']), "{script}");
    let path = "/run/statsfs/";
    assert_eq!(script.matches(path).count(), 1, "{script}");
    let script = script.replace(path, &format!("{}/", mount.display()));
    let mut sh = Command::new("/bin/sh");
    sh.args(["-c", &script]).current_dir(directory).stderr(Stdio::null()).status().unwrap()
}

/// A node_exporter that collects from a directory, and nothing else. Ended when dropped.
struct NodeExporter {
    child: Child,
    address: String,
}

impl NodeExporter {
    fn start(directory: &Path, log: &Path) -> Self {
        let mut command = Command::new(tools::node_exporter());
        command.args(["--collector.disable-defaults", "--collector.textfile"]);
        command.arg(format!("--collector.textfile.directory={}", directory.display()));
        command.args(["--web.listen-address=127.0.0.1:0", "--web.disable-exporter-metrics"]);
        tests::vmm::end_with_test(&mut command);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(log).unwrap());
        let child = command.spawn().unwrap();
        let address = wait_until("node_exporter", || {
            let said = fs::read_to_string(log).unwrap();
            let address = said.lines().find_map(|line| line.split_once(" address=127.0.0.1:"));
            address.map(|(_, port)| format!("127.0.0.1:{port}"))
        });
        Self { child, address }
    }

    fn metrics(&self) -> Samples {
        Samples::of(&ask(&format!("http://{}/metrics", self.address), "text/plain").text)
    }
}

impl Drop for NodeExporter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Samples by name and labels, and the types of families.
#[derive(Debug, PartialEq)]
struct Samples {
    types: BTreeMap<String, String>,
    samples: BTreeMap<(String, Vec<String>), f64>,
}

impl Samples {
    /// Of text in which nothing is escaped.
    fn of(text: &str) -> Self {
        assert!(!text.contains('\\'), "{text}");
        let (mut types, mut samples) = (BTreeMap::new(), BTreeMap::new());
        for line in text.lines() {
            if let Some(of) = line.strip_prefix("# TYPE ") {
                let (name, kind) = of.split_once(' ').unwrap();
                assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{line}");
            }
            if line.starts_with('#') {
                continue;
            }
            let (series, number) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let labels = labels.strip_suffix('}').unwrap().split_terminator("\",");
            let mut labels: Vec<_> =
                labels.map(|label| label.trim_end_matches('"').to_owned()).collect();
            for label in &mut labels {
                if let Some(bound) = label.strip_prefix("le=\"") {
                    *label = format!("le=\"{:?}", bound.parse::<f64>().unwrap());
                }
            }
            labels.sort();
            let key = (name.to_owned(), labels);
            assert!(samples.insert(key, number.parse().unwrap()).is_none(), "{line} comes twice");
        }
        Self { types, samples }
    }

    fn get(&self, name: &str) -> Option<f64> {
        self.samples.get(&(name.to_owned(), Vec::new())).copied()
    }

    /// Without what is not ours.
    fn ours(mut self) -> Self {
        let is_ours = |name: &str| name.starts_with("kvm_") || name.starts_with("statsfs_");
        self.types.retain(|name, _| is_ours(name));
        self.samples.retain(|(name, _), _| is_ours(name));
        self
    }
}

#[test]
fn it_serves_what_the_service_writes_and_nothing_once_there_is_no_mount() {
    let mut host = Host::start();
    let directory = host.beside("textfile");
    fs::create_dir(&directory).unwrap();
    let exporter = NodeExporter::start(&directory, &host.beside("node_exporter.log"));
    let start = |reads, public: &[&str]| {
        let steps = [Step::new(Op::In8, reads, NO_PORT), park(), end(0)];
        let vmm = Vmm::new(Mode::Long, &steps).cpus(2).published_to(&host).blocked_console();
        vmm.args(public).start()
    };
    let guests = [start(70, &["--public"]), start(7, &[])];
    let prom = directory.join("statsfs.prom");
    wait_until("the guests", || (host.value("kvm/user_exit_io_in") == Some(154)).then_some(()));
    assert!(write_textfile(&host.mount(), &directory).success());
    let names: Vec<_> = fs::read_dir(&directory).unwrap().map(|it| it.unwrap().path()).collect();
    assert_eq!(names, [&*prom]);
    let written = Samples::of(&fs::read_to_string(&prom).unwrap());
    let served = exporter.metrics();
    assert_eq!(served.get("node_textfile_scrape_error"), Some(0.0));
    let served = served.ours();
    assert_eq!(served.types, written.types);
    let beside = served.samples.iter().filter(|(key, n)| written.samples.get(key) != Some(*n));
    let beside: Vec<_> = beside.collect();
    assert_eq!(served.samples.len() - beside.len(), written.samples.len(), "{beside:?}");
    // Histograms that have no sum, as the kernel's, are given one.
    let is_sum = |name: &str| {
        let family = name.strip_suffix("_sum").and_then(|name| written.types.get(name));
        family.is_some_and(|kind| kind == "histogram")
    };
    assert!(beside.iter().all(|((name, _), n)| is_sum(name) && **n == 0.0), "{beside:?}");
    let kinds: std::collections::BTreeSet<_> = written.types.values().map(String::as_str).collect();
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), ["counter", "gauge", "histogram"]);
    assert_eq!(written.get("kvm_vms"), Some(2.0));
    // Of what is private only the totals are for all who ask.
    let of = |name: &str| written.samples.keys().filter(|(of, _)| of == name).count();
    assert_eq!(of("kvm_vm_info"), 1);
    let public = format!("pid=\"{}", guests[0].pid());
    let is_public =
        |labels: &Vec<String>| labels.iter().all(|l| !l.starts_with("pid=") || *l == public);
    assert!(written.samples.keys().all(|(_, labels)| is_public(labels)));
    for guest in guests {
        guest.kill_and_wait();
    }
    // What is served is what was written last.
    wait_until("their end", || host.machines().is_empty().then_some(()));
    assert!(write_textfile(&host.mount(), &directory).success());
    assert_eq!(exporter.metrics().get("kvm_vms"), Some(0.0));
    let total = ("kvm_host_user_exits_total".to_owned(), vec!["reason=\"io_in".to_owned()]);
    assert_eq!(exporter.metrics().samples.get(&total), Some(&154.0));
    host.kill();
    assert!(!write_textfile(&host.mount(), &directory).success());
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
    let served = exporter.metrics();
    assert_eq!(served.get("node_textfile_scrape_error"), Some(0.0));
    assert!(served.ours().samples.is_empty());
}
