//! A real Prometheus collects from the server's `/metrics` while guests come, go and are cleared.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::SystemTime;

use statsfs::Registry;
use statsfs::host::PublishOptions;
use statsfs::value::{Aggregations, Descriptor, GroupBuilder, Semantics, ValueType};
use tests::guest::{Mode, NO_PORT, Op, Step, end, park};
use tests::host::Host;
use tests::http::{ask, try_ask};
use tests::prometheus::{Prometheus, collecting_from};
use tests::running::{Running, wait_until};
use tests::stop::StopAtEnd;
use tests::vmm::Vmm;

/// So many may be connected at a time.
const PLACES: usize = 32;

#[test]
fn a_prometheus_sees_no_reset_and_no_error_while_guests_come_and_go() {
    let host = Host::with(&["--listen", "127.0.0.1:0"]);
    let metrics = host.metrics();
    let prometheus = Prometheus::start(&host.beside("prometheus"), &collecting_from(&metrics));
    let start = |reads: u32, public: bool| {
        let steps = [Step::new(Op::In8, reads, NO_PORT), park(), end(0)];
        let vmm = Vmm::new(Mode::Long, &steps).published_to(&host).blocked_console();
        let vmm = vmm.args(["--memory", "2M"]);
        let vmm = if public { vmm.args(["--public"]) } else { vmm };
        vmm.start()
    };
    let reads =
        |one: &Running| format!("kvm_user_exits_total{{pid=\"{}\",reason=\"io_in\"}}", one.pid());
    // One that does so many, one that goes on and on, and one that is not for all to see.
    let (known, busy) = (start(1234, true), start(u32::MAX, true));
    let private = start(4321, false);
    let seen = |one: &Running, n: f64| {
        wait_until(&format!("{n} accesses"), || {
            prometheus.number(&reads(one)).filter(|seen| *seen == n)
        });
    };
    seen(&known, 1234.0);
    wait_until("some of the busy one", || {
        (prometheus.query(&(reads(&busy) + "[1m]")).len() > 3).then_some(())
    });
    // What it has is what there was at that moment.
    let count = || host.value(&format!("{}/user_exit_io_in", busy.machine())).unwrap() as f64;
    let (least, asked) = (count(), SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64());
    let sample = wait_until("a sample since then", || {
        let samples = prometheus.query(&(reads(&busy) + "[5s]"));
        // What is answered may have been made a little before.
        samples.into_iter().find(|(at, _)| *at > asked + 0.5).map(|(_, n)| n)
    });
    let most = count();
    assert!(least < sample && sample < most, "{least} < {sample} < {most}");
    // What is cleared is counted on.
    std::fs::write(host.mount().join("kvm/.stats/clear"), "0").unwrap();
    assert_eq!(host.value(&format!("{}/user_exit_io_in", known.machine())), Some(0));
    let others: Vec<Running> = (0..4).map(|n| start(100 + n, true)).collect();
    others.iter().zip(0..4).for_each(|(other, n)| seen(other, f64::from(100 + n)));
    for other in others {
        other.kill_and_wait();
    }
    wait_until("they are gone", || prometheus.number("kvm_vms").filter(|vms| *vms == 3.0));
    wait_until("more of the busy one", || {
        (prometheus.query(&(reads(&busy) + "[1m]")).len() > 14).then_some(())
    });
    seen(&known, 1234.0);
    // All that was ever counted, also what is private.
    let others = "kvm_host_user_exits_total{reason=\"io_in\"} - on() sum(kvm_user_exits_total{reason=\"io_in\"})";
    assert_eq!(prometheus.number(others), Some(4321.0 + 406.0));
    assert_eq!(prometheus.query(&format!("{{pid=\"{}\"}}", private.pid())), []);
    for query in ["resets(kvm_user_exits_total[5m])", "resets(kvm_host_user_exits_total[5m])"] {
        let resets = prometheus.query(query);
        assert!(resets.len() > 40 && resets.iter().all(|(_, n)| *n == 0.0), "{query}: {resets:?}");
    }
    assert_eq!(prometheus.number("min_over_time(up[5m])"), Some(1.0), "no error");
    // A rate is what came in that time, of each machine its own.
    let of_busy = reads(&busy);
    let ratio = format!("rate({of_busy}[10s]) / (({of_busy} - {of_busy} offset 10s) / 10)");
    let ratio = prometheus.number(&ratio).unwrap();
    assert!((ratio - 1.0).abs() < 0.3, "{ratio}");
    assert_eq!(prometheus.number(&format!("rate({}[3s])", reads(&known))), Some(0.0));
    for one in [known, busy, private] {
        one.kill_and_wait();
    }
}

#[test]
fn metrics_are_in_the_format_that_is_asked_for_and_nothing_else_is_served() {
    let host = Host::with(&["--listen", "127.0.0.1:0"]);
    let url = format!("http://{}", host.metrics());
    let answer = ask(&format!("{url}/metrics"), "*/*");
    assert_eq!(
        (answer.status, answer.kind.as_str()),
        (200, "text/plain; version=0.0.4; charset=utf-8")
    );
    assert!(answer.text.contains("\nstatsfs_build_info{version="), "{}", answer.text);
    assert!(answer.text.contains("\nstatsfs_server_joined_total 0\n"), "{}", answer.text);
    let answer = ask(&format!("{url}/metrics"), "application/openmetrics-text;version=1.0.0");
    assert_eq!(answer.kind, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(answer.text.ends_with("# EOF\n"));
    assert_eq!(ask(&format!("{url}/"), "*/*").status, 404);
    // Whoever says too much is told so all the same.
    let mut stream = TcpStream::connect(host.metrics()).unwrap();
    let request = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(200_000));
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
}

#[test]
fn who_connects_and_says_nothing_keeps_nobody_from_asking_for_long() {
    let host = Host::with(&["--listen", "127.0.0.1:0"]);
    let metrics = host.metrics();
    let silent: Vec<_> = (0..128).map(|_| TcpStream::connect(&metrics).unwrap()).collect();
    let are_open = || {
        silent.iter().filter(|stream| {
            stream.set_nonblocking(true).unwrap();
            let read = stream.peek(&mut [0]);
            read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
        })
    };
    // There is not room for all of them.
    wait_until("some to be hung up on", || (are_open().count() <= PLACES).then_some(()));
    assert_eq!(are_open().count(), PLACES);
    let url = format!("http://{metrics}/metrics");
    wait_until("an answer", || try_ask(&url, "*/*").ok());
    // One of them gave way, and the others' time is not up.
    let open = are_open().count();
    assert!((1..PLACES).contains(&open), "{open} are connected");
}

#[test]
fn one_user_keeps_no_other_from_asking_however_often_they_connect() {
    let host = Host::with(&["--listen", "127.0.0.1:0"]);
    let metrics = host.metrics();
    let (done, connected) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let _stop = StopAtEnd(&done);
        for _ in 0..4 {
            scope.spawn(|| {
                // SAFETY: no pointers. It is this thread's user only, in whose name it makes sockets.
                unsafe { libc::setfsuid(12345) };
                let mut all: Vec<TcpStream> = Vec::new();
                while !done.load(Relaxed) {
                    // Who is hung up on comes again at once, and asks half of what there is.
                    all.retain_mut(|stream| {
                        stream.set_nonblocking(true).unwrap();
                        let read = stream.read(&mut [0]);
                        read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
                    });
                    while all.len() < PLACES {
                        let Ok(mut stream) = TcpStream::connect(&metrics) else { break };
                        let _ = stream.write_all(b"GET /metr");
                        all.push(stream);
                        connected.fetch_add(1, Relaxed);
                    }
                }
            });
        }
        wait_until("them", || (connected.load(Relaxed) > 20 * PLACES).then_some(()));
        let url = format!("http://{metrics}/metrics");
        for n in 0..50 {
            let answer = try_ask(&url, "*/*").unwrap_or_else(|error| panic!("{n}: {error}"));
            assert_eq!(answer.status, 200);
        }
    });
}

#[test]
fn who_publishes_very_much_is_in_totals_only() {
    let host = Host::with(&["--listen", "127.0.0.1:0"]);
    let histogram = ValueType::Histogram { buckets: 64, sum: true };
    let values = ["one", "two", "three"].map(|name| {
        let value = Descriptor::new(name, histogram, Semantics::Cumulative);
        value.aggregate(Aggregations::SUM)
    });
    let group = values.into_iter().fold(GroupBuilder::new("much"), GroupBuilder::value);
    let group = group.build().unwrap();
    let registry = Registry::new().unwrap();
    let [kvm, machine] = ["kvm", "large"].map(|name| registry.create_source(name).unwrap());
    kvm.register().unwrap();
    kvm.add_subordinate(&machine).unwrap();
    // Of each some 17 kB.
    let device = |n| {
        let device = registry.create_source(&format!("device-with-a-name-{n}")).unwrap();
        machine.add_subordinate(&device).unwrap();
        let slot = device.add_group(&group).unwrap();
        slot.record(0, 1);
        (device, slot)
    };
    let _devices: Vec<_> = (0..4500).map(device).collect();
    let options =
        PublishOptions { socket: Some(host.socket()), public: true, ..Default::default() };
    let _publisher = registry.publish(options).unwrap();
    let steps = [Step::new(Op::In8, 5, NO_PORT), park(), end(0)];
    let vmm = Vmm::new(Mode::Real, &steps).args(["--public"]).published_to(&host);
    let guest = vmm.blocked_console().start();
    wait_until("all of it", || {
        let there = host.value("kvm/user_exit_io_in") == Some(5)
            && host.value("kvm/one/count") == Some(4500);
        there.then_some(())
    });
    let answer = ask(&format!("http://{}/metrics", host.metrics()), "*/*");
    let has = |line: &str| answer.text.lines().any(|of| of == line);
    assert_eq!(answer.status, 200, "{}", answer.text);
    let of_guest = format!("vm=\"test\",pid=\"{}\"", guest.pid());
    for line in [
        &*format!("kvm_user_exits_total{{{of_guest},reason=\"io_in\"}} 5"),
        &format!("kvm_vm_info{{{of_guest}}} 1"),
        "kvm_host_one_count 4500",
        "kvm_vms 2",
        "statsfs_export_left_out{what=\"source\"} 1",
    ] {
        assert!(has(line), "no {line} in {}", answer.text);
    }
    assert!(!answer.text.contains("vm=\"large\""), "it is shown after all");
    assert!(host.log().contains("1 machines, other sources or totals are left out"));
    guest.kill_and_wait();
}

#[test]
fn a_socket_that_was_left_over_is_replaced_and_one_that_is_in_use_is_not() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("metrics");
    let listen = format!("unix:{}", path.display());
    let is_served = || {
        let mut stream = UnixStream::connect(&path).ok()?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.starts_with("HTTP/1.1 200 ").then_some(())
    };
    let mut host = Host::with(&["--listen", &listen]);
    wait_until("metrics", is_served);
    host.kill();
    assert!(path.exists() && is_served().is_none());
    host.start_again();
    wait_until("metrics again", is_served);
    let mut other = Command::new(tests::binary::statsfs());
    other.args(["serve", "--listen", &listen]);
    for name in ["mount", "socket", "state"] {
        other.arg(format!("--{name}")).arg(place.path().join(name));
    }
    let output = other.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("cannot serve metrics at unix:"), "{said}");
    assert_eq!(is_served(), Some(()));
}
