//! The network: what arrives, and what the host and the guest count of it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::thread;

use tests::flat::Flat;
use tests::linux::Linux;
use tests::running::wait_until;
use tests::tap::{self, Counters};
use tests::tracepoint::KvmReturns;

use super::{assert_powered_off, cpu_counts};

/// Bytes that are sent each way.
const SIZE: usize = 10 << 20;

/// Brings the guest's interface up.
const UP: &str = "
    ip link set lo up
    ip link set eth0 up
    ip address add 10.0.0.2/24 dev eth0";

/// What the tree says of the interface, in the terms of the host's side.
fn counted(flat: &Flat) -> Counters {
    let of = |name: &str| flat.get(&format!("{}/net0/net_{name}", flat.machine()));
    Counters {
        rx_bytes: of("tx_bytes"),
        rx_packets: of("tx_packets"),
        tx_bytes: of("rx_bytes") + of("rx_drop_bytes"),
        tx_packets: of("rx_packets") + of("rx_drops"),
    }
}

fn sha256(bytes: &[u8]) -> String {
    let mut sum = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it is there");
    sum.stdin.take().unwrap().write_all(bytes).unwrap();
    let text = String::from_utf8(sum.wait_with_output().unwrap().stdout).unwrap();
    text.split(' ').next().unwrap().to_string()
}

pub fn the_host_is_reached_and_counts_the_same() {
    cpu_counts().for_each(reach_the_host);
}

fn reach_the_host(cpus: u32) {
    let script = format!(
        "{UP}
        ping -c 3 -W 20 10.0.0.1 | grep received | sed 's/^/PING /'
        dd if=/dev/urandom of=/sent bs=64k count={} 2>/dev/null
        echo SENT $(sha256sum < /sent)
        nc 10.0.0.1 5001 < /sent
        echo RECEIVED $(nc 10.0.0.1 5002 | sha256sum)
        echo ADDRESS $(cat /sys/class/net/eth0/address)
        for name in rx_packets rx_bytes tx_packets tx_bytes; do
            echo GUEST $name $(cat /sys/class/net/eth0/statistics/$name)
        done
        echo READY
        read line",
        SIZE >> 16
    );
    tap::set_up();
    let kernel = KvmReturns::watch_all();
    let [takes, gives] = [5001, 5002].map(|port| TcpListener::bind((tap::HOST, port)).unwrap());
    let (reader, mut writer) = io::pipe().unwrap();
    let net = format!("tap={},mac=02:00:00:00:12:34", tap::NAME);
    let guest = Linux::new(&script).with(|vmm| vmm.cpus(cpus).args(["--net", &net]).stdin(reader));
    let mut running = guest.start();
    let taken = thread::spawn(move || {
        let mut bytes = Vec::new();
        takes.accept().unwrap().0.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let mut bytes = vec![0; SIZE];
    File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    let given = sha256(&bytes);
    let giver = thread::spawn(move || gives.accept().unwrap().0.write_all(&bytes).unwrap());

    running.wait_for_line("READY");
    assert!(
        running.wait_for_line("PING ").starts_with("3 packets transmitted, 3 packets received")
    );
    let taken = taken.join().unwrap();
    giver.join().unwrap();
    assert_eq!(taken.len(), SIZE);
    assert_eq!(running.wait_for_line("SENT "), format!("{} -", sha256(&taken)));
    assert_eq!(running.wait_for_line("RECEIVED "), format!("{given} -"));
    assert_eq!(running.wait_for_line("ADDRESS "), "02:00:00:00:12:34");
    // Meanwhile: as soon as nothing is under way.
    wait_until("agreement with the host's interface", || {
        (counted(&running.flat()) == tap::counters()).then_some(())
    });
    // The guest's own view: it may have been sent more since it looked.
    let flat = running.flat();
    for name in ["rx_packets", "rx_bytes", "tx_packets", "tx_bytes"] {
        let seen: u64 = running.wait_for_line(&format!("GUEST {name} ")).parse().unwrap();
        let ours = flat.get(&format!("{}/net0/net_{name}", running.machine()));
        assert!(
            seen <= ours && (name.ends_with("packets") || seen >= SIZE as u64),
            "{name}: {seen}, {ours}"
        );
    }

    writer.write_all(b"go on\n").unwrap();
    let (_, flat) = assert_powered_off(running.wait(), &kernel);
    assert_eq!(counted(&flat), tap::counters(), "in the end");
    for name in ["tx_drops", "tx_errors", "rx_errors"] {
        assert_eq!(flat.get(&format!("kvm/net_{name}")), 0, "{name}");
    }
    assert_eq!(flat.get("kvm/net_tx_time/count"), flat.get("kvm/net_tx_packets"));
}

pub fn without_a_peer_nothing_is_received() {
    tap::set_up();
    tap::ip(&format!("link set {} down", tap::NAME));
    let script = format!("{UP}\nping -c 1 -W 1 10.0.0.1 > /dev/null || echo SILENCE");
    let kernel = KvmReturns::watch_all();
    let net = format!("tap={}", tap::NAME);
    let guest = Linux::new(&script).with(|vmm| vmm.args(["--net", &net]));
    let (ended, flat) = assert_powered_off(guest.run(), &kernel);
    ended.line("SILENCE");
    assert_eq!(flat.get("kvm/net_tx_packets") + flat.get("kvm/net_rx_packets"), 0);
    assert!(flat.get("kvm/net_tx_errors") > 0, "an interface that is down takes nothing");
    assert_eq!(counted(&flat), tap::counters());
}
