//! `statsfs top`, beside `kvm_stat -d` on the same tree.

use std::fs::File;
use std::process::Command;
use std::time::Duration;

use tests::binary;
use tests::host::Host;
use tests::namespace::private;
use tests::screen::Screen;
use tests::tools;
use tests::vmm::end_with_test;

use crate::taken::watch;

pub fn measure(host: &Host, machines: usize, time: Duration) {
    for (what, keys) in
        [("statsfs top, its guests", &[][..]), ("... one guest's vCPUs", &["Enter"])]
    {
        let screen = Screen::new(160, 50);
        let pid = screen.beside("pid");
        let (program, mount) = (binary::statsfs().display(), host.mount());
        let exec = format!("exec {program} top --mount {}", mount.display());
        screen.run(&format!("sh -c 'echo $$ > {}; {exec}'", pid.display()));
        screen.wait_for(&format!("1/{machines}"));
        if !keys.is_empty() {
            screen.keys(keys);
            screen.wait_for("vcpu1");
        }
        let pid = std::fs::read_to_string(pid).expect("it was written");
        watch(what, pid.trim().parse().expect("a number"), host, time);
    }
    kvm_stat(host, time);
}

/// It looks at the files of all events of all machines, or of one.
fn kvm_stat(host: &Host, time: Duration) {
    let (script, place) = (tools::kvm_stat(), tempfile::tempdir().expect("a place"));
    let kvm = host.mount().join("kvm");
    let own = std::process::id().to_string();
    private(|| {
        tools::show_kvm_stat(&kvm, place.path());
        let mut command = Command::new("python3");
        command.env("PYTHONUNBUFFERED", "1");
        command.arg(&script).args(["-d", "-i", "-l", "-s", "1", "-p", &own]);
        end_with_test(&mut command);
        let lines = host.beside("lines");
        let child = command.stdout(File::create(&lines).expect("a file")).spawn();
        let mut child = child.expect("`apt-get install -y python3`");
        watch("kvm_stat -d -i -l -s 1 -p", child.id(), host, time);
        // Names of events are between the lines, at times.
        let text = std::fs::read_to_string(&lines).unwrap_or_default();
        let looks = text.lines().filter(|line| !line.contains("user_exits")).count();
        println!("  ... which were {looks} looks in all");
        let _ = child.kill();
        let _ = child.wait();
    });
}
