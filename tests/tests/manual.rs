//! Manual pages and completions are of what the commands take, programs that read them do not complain, and what is said
//! of versions and exit statuses holds.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use statsfs::host::{protocol, state};
use statsfs::{segment, snapshot};
use tempfile::TempDir;
use tests::binary;
use tests::command::{complains, said};
use tests::guest::{Mode, NO_PORT, Op, Step, end, virtio_kernel};
use tests::host::Host;
use tests::packages::require;
use tests::running::wait_until;
use tests::vmm::{Vmm, end_with_test, hear_hangup};

/// A command, and what it writes of itself.
struct Manual {
    program: PathBuf,
    directory: TempDir,
}

impl Manual {
    fn of(program: &Path) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut generate = Command::new(program);
        generate.arg("generate").arg(directory.path());
        assert_eq!(said(generate), "");
        Self { program: program.into(), directory }
    }

    fn both() -> [Self; 2] {
        [Self::of(binary::statsfs()), Self::of(binary::vmm())]
    }

    fn name(&self) -> &str {
        self.program.file_name().unwrap().to_str().unwrap()
    }

    /// What it says with these arguments.
    fn says(&self, args: &[&str]) -> String {
        let mut command = Command::new(&self.program);
        command.args(args);
        said(command)
    }

    fn file(&self, path: String) -> PathBuf {
        let path = self.directory.path().join(path);
        assert!(path.is_file(), "{}", path.display());
        path
    }

    /// The subcommands that its help shows, each with what that says of it.
    fn subcommands(&self) -> Vec<(String, String)> {
        let help = self.says(&["--help"]);
        let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
        let lines = lines.take_while(|line| !line.is_empty());
        let entries = lines.filter_map(|line| line.strip_prefix("  ")?.split_once("  "));
        let entries = entries.map(|(name, about)| (name.to_string(), about.trim().to_string()));
        let all: Vec<_> = entries.filter(|(name, _)| name != "help").collect();
        assert!(all.len() >= 3, "{help}");
        all
    }

    /// The options that the help of a subcommand shows, or that of the command.
    fn options(&self, subcommand: Option<&str>) -> BTreeSet<String> {
        let help = self.says(&subcommand.into_iter().chain(["--help"]).collect::<Vec<_>>());
        let lines = help.lines().skip_while(|line| *line != "Options:").skip(1);
        let lines = lines.take_while(|line| line.is_empty() || line.starts_with(' '));
        let lines = lines.map(str::trim_start).filter(|line| line.starts_with('-'));
        let words = lines.flat_map(|line| line.split([' ', ',']).take(3).map(str::to_string));
        // A value that may be left out is a part of the word.
        let name = |word: String| word.split(['[', '=']).next().unwrap().to_string();
        let all: BTreeSet<_> = words.filter(|word| word.starts_with("--")).map(name).collect();
        assert!(all.contains("--help"), "{help}");
        all
    }
}

/// What a command says on both outputs if it succeeds.
#[track_caller]
fn all_said(command: &mut Command, package: &str) -> String {
    let program = command.get_program().to_str().unwrap().to_owned();
    require(&program, package).unwrap();
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let all = text(stdout) + &text(stderr);
    assert!(status.success(), "{command:?}: {status}: {all}");
    all
}

#[test]
fn each_command_has_a_page_that_man_takes_without_a_word() {
    for manual in Manual::both() {
        let name = manual.name();
        let about = manual.says(&["--help"]).lines().next().unwrap().to_string();
        let subcommands = manual.subcommands().into_iter();
        let subcommands = subcommands.map(|(sub, about)| (format!("{name}-{sub}"), about));
        let expected: Vec<_> = [(name.to_string(), about)].into_iter().chain(subcommands).collect();
        let pages = fs::read_dir(manual.directory.path().join("man/man1")).unwrap();
        let pages: BTreeSet<_> =
            pages.map(|page| page.unwrap().file_name().into_string().unwrap()).collect();
        let names = expected.iter().map(|(name, _)| format!("{name}.1"));
        assert_eq!(pages, names.collect());
        for (page, about) in &expected {
            let path = manual.file(format!("man/man1/{page}.1"));
            let mut groff = Command::new("groff");
            groff.args(["-ww", "-man", "-Tutf8", "-z"]).arg(&path);
            assert_eq!(all_said(&mut groff, "groff-base"), "");
            let mut man = Command::new("man");
            man.args(["--warnings", "-E", "UTF-8", "-l", "-P", "cat"]).arg(&path);
            let text = all_said(man.env("MANWIDTH", "80").env("MAN_KEEP_FORMATTING", ""), "man-db");
            assert!(!text.contains("warning"), "{text}");
            let mut lexgrog = Command::new("lexgrog");
            let found = all_said(lexgrog.arg(&path), "man-db");
            // A long one has been broken by the help, for this width.
            let known = format!("{}: \"{page} - {about}", path.display());
            assert!(found.starts_with(&known), "{found}: {known}");
            for title in ["SYNOPSIS", "OPTIONS", "EXIT STATUS", "EXAMPLES", "SEE ALSO"] {
                assert!(text.lines().any(|line| line == title), "{page} has no {title}: {text}");
            }
            for (other, _) in expected.iter().filter(|(other, _)| other != page) {
                assert!(text.contains(&format!("{other}(1)")), "{page} does not name {other}");
            }
            let version = format!("statsfs {}", env!("CARGO_PKG_VERSION"));
            assert!(text.trim_end().lines().last().unwrap().starts_with(&version), "{text}");
            let sub = page.strip_prefix(&format!("{name}-"));
            for option in manual.options(sub) {
                assert!(text.contains(&option), "{page} does not have {option}");
            }
        }
        let page =
            |page: &str| fs::read_to_string(manual.file(format!("man/man1/{page}.1"))).unwrap();
        // What a page speaks of, and nothing else.
        let (speaks, silent) = if name == "vmm" {
            ("vmm-run", "vmm-list")
        } else {
            ("statsfs-status", "statsfs-dump")
        };
        assert!(page(speaks).contains("STATSFS_SOCKET") && page(speaks).contains(".SH FILES"));
        let other = page(silent);
        assert!(other.contains(".SH ENVIRONMENT\n.TP\n\\fBXDG_RUNTIME_DIR"), "{other}");
        assert!(!other.contains("STATSFS_SOCKET"), "{other}");
    }
}

/// What bash completes a line to, of which the last word has been begun.
fn completed_by_bash(script: &Path, words: &[&str]) -> BTreeSet<String> {
    // As `complete` has it call the function: command, word, and the word before.
    const CALL: &str = r#"
        . "$1"; shift
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
        [ -n "$(complete -p -- "$1")" ] || exit 1
        "_$1" "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}""#;
    let mut bash = Command::new("bash");
    bash.args(["--norc", "-c", CALL, "bash"]).arg(script).args(words);
    all_said(&mut bash, "bash").lines().map(str::to_string).collect()
}

/// What fish completes a line to.
fn completed_by_fish(script: &Path, line: &str) -> BTreeSet<String> {
    let mut fish = Command::new("fish");
    fish.args(["--no-config", "-c", "source $argv[1]; complete --do-complete $argv[2]"]);
    let home = tempfile::tempdir().unwrap();
    let all = all_said(fish.arg(script).arg(line).env("HOME", home.path()), "fish");
    // Each with what it is for after a tab.
    all.lines().map(|line| line.split('\t').next().unwrap().to_string()).collect()
}

#[test]
fn shells_complete_all_commands_and_options_and_nothing_else() {
    for manual in Manual::both() {
        let name = manual.name();
        let bash = manual.file(format!("bash-completion/completions/{name}"));
        let fish = manual.file(format!("fish/vendor_completions.d/{name}.fish"));
        let zsh = manual.file(format!("zsh/site-functions/_{name}"));
        for (shell, script) in [("bash", &bash), ("zsh", &zsh), ("fish", &fish)] {
            assert_eq!(all_said(Command::new(shell).arg("-n").arg(script), shell), "");
        }
        let text = fs::read_to_string(&zsh).unwrap();
        assert!(text.starts_with(&format!("#compdef {name}\n")));

        let subcommands = manual.subcommands();
        let subcommands = || subcommands.iter().map(|(sub, _)| sub.as_str());
        let mut expected: BTreeSet<_> = subcommands().chain(["help"]).map(str::to_string).collect();
        assert_eq!(completed_by_fish(&fish, &format!("{name} ")), expected);
        expected.extend(["-h", "-V", "--help", "--version"].map(str::to_string));
        assert_eq!(completed_by_bash(&bash, &[name, ""]), expected);
        for sub in subcommands() {
            let shown = manual.options(Some(sub));
            for completed in [
                completed_by_fish(&fish, &format!("{name} {sub} --")),
                completed_by_bash(&bash, &[name, sub, "--"]),
            ] {
                let hidden: Vec<_> = completed.difference(&shown).collect();
                assert!(hidden.is_empty(), "{sub}: {hidden:?}");
                let missing: Vec<_> = shown.difference(&completed).collect();
                assert!(missing.is_empty(), "{sub}: {missing:?}");
            }
            assert!(!text.contains("--accounting"), "what help hides is for measurements");
            for option in &shown {
                // After those that it excludes, if any.
                let is_there = ["'", ")"].map(|before| format!("{before}{option}["));
                let is_there = is_there.into_iter().chain([format!("{option}=[")]);
                assert!(is_there.into_iter().any(|it| text.contains(&it)), "zsh: {sub} {option}");
            }
        }
    }
}

#[test]
fn a_page_that_can_not_be_written_is_told_in_a_line() {
    for program in [binary::statsfs(), binary::vmm()] {
        let mut generate = Command::new(program);
        generate.args(["generate", "/dev/null"]);
        let line = complains(generate, 1);
        assert!(
            line.contains(": /dev/null/man/man1/") && line.contains("can not be written"),
            "{line}"
        );
    }
}

#[test]
fn the_version_is_told_in_a_line_and_with_those_of_the_formats() {
    for manual in Manual::both() {
        let first = format!("{} {}\n", manual.name(), env!("CARGO_PKG_VERSION"));
        assert_eq!(manual.says(&["-V"]), first);
        let version = manual.says(&["--version"]);
        let formats = [
            ("segment format", segment::layout::VERSION),
            ("snapshot format", snapshot::format::VERSION),
            ("state format", state::VERSION),
            ("protocol", protocol::VERSION.into()),
        ];
        for (format, number) in formats {
            assert!(
                version.contains(&format!("\n{format} {number}\n"))
                    || version.ends_with(&format!("\n{format} {number}\n")),
                "{version}"
            );
        }
        assert!(version.starts_with(&first), "{version}");
    }
    // This one is in what it is the version of.
    let host = Host::start();
    let schema = fs::read_to_string(host.mount().join(".stats/schema")).unwrap();
    let schema: serde_json::Value = serde_json::from_str(&schema).unwrap();
    let version = Manual::of(binary::statsfs()).says(&["--version"]);
    assert!(version.contains(&format!("\nschema format {}\n", schema["version"])), "{version}");
    let recording = format!("\nrecording format {}\n", snapshot::recording::VERSION);
    assert!(version.ends_with(&recording), "{version}");
}

#[test]
fn the_text_of_each_help_is_broken_only_where_the_line_ends() {
    /// As wide as help is where there is no terminal.
    const WIDTH: usize = 100;
    for manual in Manual::both() {
        for (sub, _) in manual.subcommands() {
            let help = manual.says(&[&sub, "--help"]);
            let (_, after) = help.split_once("Print help").unwrap();
            let lines: Vec<_> = after.lines().collect();
            for (line, next) in lines.iter().zip(&lines[1..]) {
                let is_text = |line: &str| !line.is_empty() && !line.starts_with(' ');
                let Some(word) = next.split(' ').next().filter(|_| is_text(line) && is_text(next))
                else {
                    continue;
                };
                let least = line.chars().count() + 1 + word.chars().count();
                assert!(least > WIDTH, "{sub}: {line}\n{next}");
            }
        }
    }
}

/// The statuses that a help says there are; `0-123` is told by its ends.
fn documented(program: &Path, args: &[&str]) -> BTreeSet<i32> {
    let mut help = Command::new(program);
    help.args(args).arg("--help");
    let help = said(help);
    let (_, statuses) = help.split_once("Exit status:").unwrap_or_else(|| panic!("{help}"));
    let is_number = |text: &&str| text.starts_with(|c: char| c.is_ascii_digit());
    // A line for each, or all in a sentence.
    let listed = statuses.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    let words = statuses.split([' ', ';', ',', '\n']);
    let found: Vec<_> =
        if statuses.starts_with("\n  ") { listed.collect() } else { words.collect() };
    let found = found.into_iter().filter(is_number).flat_map(|text| text.split('-'));
    found.map(|number| number.parse().unwrap()).collect()
}

#[test]
fn each_status_of_a_guest_that_is_documented_there_is() {
    let flat = |steps: &[Step]| Vmm::new(Mode::Long, steps).unmounted();
    let busy = || flat(&[Step::new(Op::In8, u32::MAX, NO_PORT)]);
    let signalled = |signal: i32| {
        let running = busy().start();
        wait_until("it runs", || {
            let tasks = fs::read_dir(format!("/proc/{}/task", running.pid())).ok()?;
            (tasks.count() > 1).then_some(())
        });
        running.signal(signal);
        running.wait().code()
    };
    let occurred: Vec<i32> = vec![
        Vmm::of_kernel(&virtio_kernel(0, 0)).unmounted().run().code(),
        flat(&[end(123)]).run().code(),
        flat(&[Step::new(Op::Crash, 1, 0)]).run().code(),
        Vmm::of_kernel(b"no kernel").unmounted().run().code(),
        signalled(libc::SIGHUP),
        signalled(libc::SIGINT),
        signalled(libc::SIGQUIT),
        signalled(libc::SIGTERM),
        flat(&[end(0)]).args(["--memory", "1"]).run().code(),
    ];
    assert_eq!(occurred, [0, 123, 124, 125, 129, 130, 131, 143, 2]);
    let run = documented(binary::vmm(), &["run"]);
    assert_eq!(run, occurred.iter().copied().collect());
    // The command as a whole has that of `list` more.
    let mut all = run;
    all.insert(1);
    assert_eq!(documented(binary::vmm(), &[]), all);
}

#[test]
fn each_status_of_the_demo_that_is_documented_there_is() {
    let place = tempfile::tempdir().unwrap();
    let mount = place.path().to_str().unwrap();
    let demo = |mount: &str, args: &[&str]| {
        let mut demo = Command::new(binary::vmm());
        end_with_test(&mut demo);
        hear_hangup(&mut demo);
        demo.args(["demo", "--quiet", "--guests", "1", "--mount", mount]).args(args);
        demo
    };
    let status = |mut demo: Command| demo.output().unwrap().status.code().unwrap();
    let signalled = |signal: i32| {
        let mut child = demo(mount, &["--seconds", "1000"])
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        wait_until("the demo", || fs::read(place.path().join("kvm/user_exits")).ok());
        // SAFETY: no pointers; the child has not been waited for, so the process id is its.
        unsafe { libc::kill(child.id() as libc::pid_t, signal) };
        child.wait().unwrap().code().unwrap()
    };
    let occurred = BTreeSet::from([
        status(demo(mount, &["--seconds", "1"])),
        status(demo("/dev/null/nowhere", &["--seconds", "1"])),
        status(demo(mount, &["--seconds", "never"])),
        signalled(libc::SIGHUP),
        signalled(libc::SIGINT),
        signalled(libc::SIGQUIT),
        signalled(libc::SIGTERM),
    ]);
    assert_eq!(occurred, BTreeSet::from([0, 125, 2, 129, 130, 131, 143]));
    assert_eq!(documented(binary::vmm(), &["demo"]), occurred);
}

#[test]
fn each_status_of_the_tools_that_is_documented_there_is() {
    let statsfs = Manual::of(binary::statsfs());
    let list = [(binary::vmm().to_path_buf(), "list".to_string())];
    let all = statsfs.subcommands().into_iter().map(|(sub, _)| (statsfs.program.clone(), sub));
    let all: Vec<_> = all.chain(list).collect();
    assert_eq!(documented(&statsfs.program, &[]), BTreeSet::from([0, 1, 2]));
    let host = Host::start();
    let (mount, socket) = (host.mount(), host.socket());
    let (mount, socket) = (mount.to_str().unwrap(), socket.to_str().unwrap());
    let saved = host.beside("saved");
    fs::write(&saved, fs::read(host.mount().join(".stats/snapshot")).unwrap()).unwrap();
    let saved = saved.to_str().unwrap();
    for (program, sub) in &all {
        let documented = documented(program, &[sub]);
        assert!(documented.is_superset(&BTreeSet::from([0, 1, 2])), "{sub}: {documented:?}");
        let status = |args: &[&str]| {
            let output = Command::new(program).arg(sub).args(args).output().unwrap();
            output.status.code().unwrap()
        };
        assert_eq!(status(&["--nonsense"]), 2, "{sub}");
        // What succeeds, and what can not be done.
        let (good, bad): (&[&str], &[&str]) = match &**sub {
            "status" => (&["--socket", socket], &["--socket", "/nowhere"]),
            "ls" | "dump" | "list" => (&["--mount", mount], &["--mount", "/nowhere"]),
            "describe" => (&["server_clients", "--mount", mount], &["nonsense", "--mount", mount]),
            "diff" => (&[saved, saved], &[saved, "/nowhere"]),
            // It goes on until it is told to end, as in the packages' tests.
            "serve" => {
                let beside = ["socket", "state"].map(|name| host.beside(&format!("other-{name}")));
                let [socket, state] = beside.each_ref().map(|path| path.to_str().unwrap());
                let nowhere =
                    ["--mount", "/dev/null/nowhere", "--socket", socket, "--state", state];
                assert_eq!(status(&nowhere), 1);
                continue;
            }
            // Tests of their own have these.
            _ => continue,
        };
        assert_eq!((status(good), status(bad)), (0, 1), "{sub}");
    }
}
