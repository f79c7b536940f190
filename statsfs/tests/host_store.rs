//! The state of a host's server: kept whole whatever ends the server, and read with no trust.

use std::fs::{self, Permissions};
use std::io::{self, PipeReader, Read, Write};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use statsfs::host::state::{
    CommitError, Found, HostState, Left, MAX_FOLDED, MAX_WORDS, Process, Saved, SavedAccount,
    SavedDirectory, State, StateError, Step, Store, StoreError,
};
use statsfs::value::{Descriptor, GroupBuilder, GroupDescriptor, Semantics, ValueType};

/// A group with so many counters and a histogram.
fn group(name: &str, counters: usize) -> Arc<GroupDescriptor> {
    let count = |name: String, ty| Descriptor::new(name, ty, Semantics::Cumulative);
    let histogram = ValueType::Histogram { buckets: 40, sum: true };
    let mut group = GroupBuilder::new(name.to_owned()).consistent();
    group = group.value(count(format!("{name}_time"), histogram).help("Time."));
    for n in 0..counters {
        group = group.value(count(format!("{name}_{n}"), ValueType::U64));
    }
    group.build().unwrap()
}

fn process(publisher: u128) -> Process {
    let (pid, start_time) = (publisher as u32 % 1000 + 1, 77_000);
    Process { publisher, pid, start_time, uid: 1000, gid: 36, public: false, segments: 2 }
}

/// A state with something in every table, whose counts are all `n`.
fn state(n: u64) -> State {
    let groups = vec![group("vm", 3), group("vcpu", 100)];
    let words = |group: usize| vec![n; groups[group].words()].into_boxed_slice();
    let account = |publisher, departed| SavedAccount { publisher, source: 5, departed, group: 1 };
    let mut tree = Saved {
        identities: [(0, (0, 0)), (1, (0, 1)), (4, (1, 100))].into(),
        next_block: 5,
        grants: [((7, 0), 2), ((9, 0), 3), ((9, 1 << 52), 4)].into(),
        directories: [("kvm".to_owned(), SavedDirectory { number: 1 << 12, admitted: vec![4, 0] })]
            .into(),
        baselines: [(account(7, false), words(1)), (account(7, true), words(1))].into(),
        parents: [((7, 5), 4), ((7, 4), 2)].into(),
        ..Saved::default()
    };
    let host = HostState { processes: vec![process(9), process(7)], folded: [3, 1].into() };
    for (directory, group) in [("", 0), ("kvm", 0), ("kvm", 1)] {
        let left = Left { raw: words(group), cleared: words(group) };
        tree.ledger.insert((directory.to_owned(), group), left);
    }
    tree.groups = groups;
    State { tree, host }
}

/// The number that the counts of a state are, all of them.
fn number(state: &State) -> u64 {
    let left = state.tree.ledger.values().flat_map(|left| left.raw.iter().chain(&left.cleared));
    let accounts = state.tree.baselines.values().flatten();
    let all: Vec<u64> = left.chain(accounts).copied().collect();
    assert!(all.iter().all(|n| *n == all[0]), "of several states at once");
    all[0]
}

struct Place {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        Self { _dir: dir, path }
    }

    fn open(&self) -> (Store, Found) {
        let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
        loop {
            match Store::open(&self.path) {
                // A child that another test has just made has what was open at that moment, until it ends.
                Err(StoreError::InUse { .. }) if std::time::Instant::now() < end => {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
                opened => return opened.unwrap(),
            }
        }
    }

    fn read(&self) -> State {
        match self.open().1 {
            Found::State(state) => *state,
            other => panic!("{other:?}"),
        }
    }

    fn file(&self) -> PathBuf {
        self.path.join("state")
    }
}

fn commit(store: &mut Store, state: &State) -> Result<(), CommitError> {
    let bytes = store.commit(&state.tree, &state.host)?;
    assert_eq!(bytes, state.encode().unwrap().len());
    Ok(())
}

#[test]
fn what_was_kept_is_read() {
    let place = Place::new();
    let (mut store, found) = place.open();
    assert!(matches!(found, Found::Nothing));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(&place.path), mode(&place.file())), (0o700, 0o600));
    for n in 1..5 {
        commit(&mut store, &state(n)).unwrap();
        drop(store);
        assert_eq!(place.read(), state(n));
        store = place.open().0;
    }
    commit(&mut store, &State::default()).unwrap();
    drop(store);
    assert_eq!(place.read(), State::default());
}

#[test]
fn a_directory_has_one_server() {
    let place = Place::new();
    let (store, _) = place.open();
    let error = Store::open(&place.path).unwrap_err();
    assert!(matches!(&error, StoreError::InUse { path } if *path == place.file()), "{error}");
    drop(store);
    place.open();
}

#[test]
fn a_directory_that_others_can_change_is_refused() {
    let place = Place::new();
    drop(place.open());
    let set = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    for mode in [0o720, 0o702, 0o777] {
        set(&place.path, mode);
        let error = Store::open(&place.path).unwrap_err();
        assert!(matches!(error, StoreError::Mode { mode: is, .. } if is == mode), "{error}");
    }
    set(&place.path, 0o700);
    set(&place.file(), 0o644);
    let error = Store::open(&place.path).unwrap_err();
    assert!(matches!(error, StoreError::Mode { mode: 0o644, .. }), "{error}");
    set(&place.file(), 0o600);
    for path in [&place.file(), &place.path] {
        chown(path, Some(1234), None).expect("to be run as root");
        let error = Store::open(&place.path).unwrap_err();
        assert!(matches!(error, StoreError::Foreign { uid: 1234, .. }), "{error}");
        chown(path, Some(0), None).unwrap();
    }
    drop(place.open());

    let link = place.path.with_extension("link");
    symlink(&place.path, &link).unwrap();
    let error = Store::open(&link).unwrap_err();
    assert!(matches!(error, StoreError::Open { .. }), "{error}");
    let error = Store::open(&place.file()).unwrap_err();
    assert!(matches!(error, StoreError::Open { .. }), "{error}");
    let error = Store::open(&place.path.join("no/such")).unwrap_err();
    assert!(matches!(error, StoreError::Create { .. }), "{error}");

    // What is not a file is not waited for.
    fs::rename(place.file(), place.path.join("other")).unwrap();
    symlink("other", place.file()).unwrap();
    let error = Store::open(&place.path).unwrap_err();
    assert!(matches!(error, StoreError::Read { .. }), "{error}");
    fs::remove_file(place.file()).unwrap();
    nix::unistd::mkfifo(&place.file(), nix::sys::stat::Mode::S_IRUSR).unwrap();
    let error = Store::open(&place.path).unwrap_err();
    assert!(matches!(error, StoreError::NotFile { .. }), "{error}");
}

#[test]
fn a_state_that_lies_is_refused_and_replaced() {
    let place = Place::new();
    let (mut store, _) = place.open();
    commit(&mut store, &state(1)).unwrap();
    drop(store);
    fs::write(place.file(), vec![0x5a; 30_000]).unwrap();
    let (mut store, found) = place.open();
    assert!(matches!(found, Found::Refused(StateError::Damaged)));
    commit(&mut store, &state(2)).unwrap();
    drop(store);
    assert_eq!(number(&place.read()), 2);
}

// --- The end of a server ---

/// Runs `run` in a forked child and answers how that ended.
fn in_child(run: impl FnOnce()) -> i32 {
    let pid = fork(run);
    wait(pid)
}

fn fork(run: impl FnOnce()) -> libc::pid_t {
    // SAFETY: the child runs nothing but `run` and _exit(2), and takes no lock of this process but those of
    // malloc, which fork takes care of.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        // SAFETY: plain system calls. The alarm ends a child that waits for ever.
        unsafe { libc::alarm(120) };
        let outcome = catch_unwind(AssertUnwindSafe(run));
        exit(i32::from(outcome.is_err()));
    }
    pid
}

/// Ends the process at once, with nothing cleaned up.
fn exit(status: i32) -> ! {
    // SAFETY: a plain system call.
    unsafe { libc::_exit(status) }
}

fn wait(pid: libc::pid_t) -> i32 {
    let mut status = 0;
    // SAFETY: the pointer is to a live integer.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    status
}

/// The state that a commit of `state(n)` over `old` leaves, if the process ends at its `stop`th step, which is
/// answered as well; `None` for a commit that has no such step.
fn stopped_at(place: &Place, new: &State, stop: usize) -> Option<(Step, Found)> {
    let (mut told, mut tell) = io::pipe().unwrap();
    let status = in_child(|| {
        let (mut store, _) = place.open();
        let mut so_far = 0;
        store.on_step(move |step| {
            if so_far == stop {
                write!(tell, "{step:?}").unwrap();
                exit(99);
            }
            so_far += 1;
        });
        commit(&mut store, new).unwrap();
    });
    if status == 0 {
        return None;
    }
    assert_eq!(libc::WEXITSTATUS(status), 99, "{status:#x}");
    let mut step = String::new();
    told.read_to_string(&mut step).unwrap();
    let payload = step.strip_prefix("Payload(").and_then(|rest| rest.strip_suffix(')'));
    let step = match (&*step, payload) {
        (_, Some(at)) => Step::Payload(at.parse().unwrap()),
        ("StartAnew", _) => Step::StartAnew,
        ("Header", _) => Step::Header,
        ("Shrink", _) => Step::Shrink,
        ("Done", _) => Step::Done,
        _ => panic!("{step}"),
    };
    Some((step, place.open().1))
}

/// What a server says at each step of a commit, where it says which state it has committed otherwise.
const STEP: u64 = u64::MAX;

/// Makes it the state of another number.
fn renumber(state: &mut State, n: u64) {
    for left in state.tree.ledger.values_mut() {
        left.raw.fill(n);
        left.cleared.fill(n);
    }
    state.tree.baselines.values_mut().for_each(|words| words.fill(n));
}

/// A state of several pieces.
fn large(n: u64) -> State {
    let mut state = state(n);
    let words = vec![n; state.tree.groups[1].words()].into_boxed_slice();
    for source in 6..500 {
        let account = SavedAccount { publisher: 7, source, departed: false, group: 1 };
        state.tree.baselines.insert(account, words.clone());
    }
    state
}

#[test]
fn ended_at_any_step_it_is_the_old_or_the_new() {
    let place = Place::new();
    let mut seen = Vec::new();
    let (mut current, mut next) = (0, 1);
    // The first commit, one that grows the file, some in turns, one that shrinks it.
    for make in [state as fn(u64) -> State, large, large, state, large, state, state] {
        for stop in 0.. {
            let Some((step, found)) = stopped_at(&place, &make(next), stop) else { break };
            let now = match found {
                Found::State(state) => number(&state),
                Found::Nothing => 0,
                other => panic!("{step:?}: {other:?}"),
            };
            let committed = matches!(step, Step::Shrink | Step::Done);
            assert_eq!(now, if committed { next } else { current }, "{step:?}");
            seen.push(step);
            current = now;
            next = current + 1;
        }
        // That one went through.
        current = next;
        next += 1;
        assert_eq!(place.read(), make(current));
    }
    for step in
        [Step::StartAnew, Step::Payload(0), Step::Payload(64 << 10), Step::Header, Step::Done]
    {
        assert!(seen.contains(&step), "{step:?} was not met");
    }
}

#[test]
fn killed_at_any_moment_it_is_the_old_or_the_new() {
    let place = Place::new();
    let soak = std::env::var("STATSFS_SOAK").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let (mut total, mut unacknowledged) = (0, 0);
    for round in 0..40 * soak {
        let (mut told, mut tell) = io::pipe().unwrap();
        let first = total + 1;
        let pid = fork(|| {
            let (mut store, found) = place.open();
            assert!(matches!(found, Found::Nothing) || first > 1);
            let mut tell_step = tell.try_clone().unwrap();
            store.on_step(move |_| tell_step.write_all(&STEP.to_le_bytes()).unwrap());
            let (mut one, mut other) = (state(0), large(0));
            for n in first.. {
                let state = if n % 3 == 0 { &mut one } else { &mut other };
                renumber(state, n);
                commit(&mut store, state).unwrap();
                tell.write_all(&n.to_le_bytes()).unwrap();
            }
        });
        drop(tell);
        let mut acknowledged = total;
        for _ in 0..round * 7 % 31 {
            match read_number(&mut told).unwrap() {
                STEP => {}
                n => acknowledged = n,
            }
        }
        // Some steps later, or in the midst of one.
        std::thread::sleep(Duration::from_micros(round * 37 % 500));
        // SAFETY: a plain system call; the child was not waited for.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
        assert!(libc::WIFSIGNALED(wait(pid)));
        while let Some(n) = read_number(&mut told) {
            if n != STEP {
                acknowledged = n;
            }
        }
        let now = match place.open().1 {
            Found::State(state) => number(&state),
            Found::Nothing => 0,
            other => panic!("{other:?}"),
        };
        assert!(now == acknowledged || now == acknowledged + 1, "{now} after {acknowledged}");
        unacknowledged += usize::from(now > acknowledged);
        total = now;
    }
    println!("{total} commits, {unacknowledged} of them told to nobody");
    assert!(total > 0);
}

fn read_number(told: &mut PipeReader) -> Option<u64> {
    let mut bytes = [0; 8];
    told.read_exact(&mut bytes).ok()?;
    Some(u64::from_le_bytes(bytes))
}

#[test]
fn a_full_file_system_leaves_the_old() {
    let place = Place::new();
    let status = in_child(|| {
        // SAFETY: a plain system call.
        let new = unsafe { libc::unshare(libc::CLONE_NEWNS) };
        assert_eq!(new, 0, "to be run as root: {}", io::Error::last_os_error());
        let flags = nix::mount::MsFlags::MS_PRIVATE | nix::mount::MsFlags::MS_REC;
        nix::mount::mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).unwrap();
        fs::create_dir(&place.path).unwrap();
        let none = nix::mount::MsFlags::empty();
        let options = Some("size=128k,mode=700");
        nix::mount::mount(Some("tmpfs"), &place.path, Some("tmpfs"), none, options).unwrap();
        let (mut store, _) = place.open();
        for n in 1..10 {
            commit(&mut store, &state(n)).unwrap();
            let error = commit(&mut store, &large(n)).unwrap_err();
            let full = io::ErrorKind::StorageFull;
            assert!(matches!(&error, CommitError::Write { source, .. } if source.kind() == full));
            // What was written in vain does not stay.
            assert!(fs::metadata(place.file()).unwrap().len() < 64 << 10);
            drop(store);
            assert_eq!(place.read(), state(n));
            store = place.open().0;
        }
    });
    assert_eq!(status, 0);
}

// --- What is accepted ---

#[test]
fn what_no_reader_would_accept_is_not_kept() {
    let place = Place::new();
    let (mut store, _) = place.open();
    commit(&mut store, &state(1)).unwrap();
    let mut expect = |change: &dyn Fn(&mut State), expected: StateError| {
        let mut state = state(2);
        change(&mut state);
        let error = state.encode().unwrap_err();
        assert_eq!(error, expected);
        assert!(
            matches!(commit(&mut store, &state), Err(CommitError::State(error)) if error == expected)
        );
    };
    let twice = |table, what: &str| StateError::Twice { table, what: what.to_owned() };
    let account = SavedAccount { publisher: 7, source: 5, departed: false, group: 1 };
    let directory = |number| SavedDirectory { number, admitted: Vec::new() };

    expect(
        &|s| _ = s.tree.identities.insert(1 << 17, (0, 0)),
        StateError::TooLarge("identities", (1 << 17) - 1),
    );
    let no_group = |table| StateError::NoGroup { table, group: 2 };
    expect(&|s| _ = s.tree.identities.insert(2, (2, 0)), no_group("identities"));
    expect(
        &|s| _ = s.tree.identities.insert(2, (0, 4)),
        StateError::NoValue { group: 0, value: 4 },
    );
    expect(&|s| _ = s.tree.identities.insert(2, (0, 0)), twice("identities", "vm_time"));
    expect(&|s| s.host.processes[0].publisher = 0, StateError::Zero("processes"));
    let seven = "publisher 00000000000000000000000000000007";
    expect(&|s| s.host.processes[0].publisher = 7, twice("processes", seven));
    expect(&|s| s.host.folded.push_back(7), twice("processes", seven));
    expect(
        &|s| s.host.folded.push_back(3),
        twice("folded", "publisher 00000000000000000000000000000003"),
    );
    expect(&|s| s.host.folded.push_back(0), StateError::Zero("folded"));
    let folded = StateError::TooLarge("folded publishers", MAX_FOLDED);
    expect(&|s| s.host.folded.extend(100..100 + MAX_FOLDED as u128), folded);
    expect(&|s| s.host.processes[0].pid = 1 << 31, StateError::Process(1 << 31));
    expect(&|s| s.host.processes[0].pid = 0, StateError::Zero("processes"));
    expect(&|s| s.host.processes[0].segments = 0, StateError::Process(10));
    expect(&|s| s.host.processes[0].segments = 257, StateError::Process(10));
    expect(&|s| s.tree.next_block = 0, StateError::Number(0));
    expect(&|s| s.tree.next_block = u64::MAX, StateError::Number(u64::MAX));
    expect(&|s| _ = s.tree.grants.insert((1, 0), 5), StateError::Number(5));
    expect(&|s| _ = s.tree.grants.insert((1, 0), 0), StateError::Number(0));
    expect(&|s| _ = s.tree.grants.insert((1, 0), 4), twice("grants", "block 4"));
    expect(&|s| _ = s.tree.grants.insert((0, 0), 1), StateError::Zero("grants"));
    for name in ["", "..", "a/b", ".departed", "a b", &"x".repeat(64)] {
        let wrong = StateError::Name(name.to_owned());
        expect(&|s| _ = s.tree.directories.insert(name.to_owned(), directory(1 << 12 | 1)), wrong);
        if !name.is_empty() {
            let wrong = StateError::Name(name.to_owned());
            expect(&|s| _ = s.tree.ledger.insert((name.to_owned(), 0), Left::default()), wrong);
        }
    }
    expect(
        &|s| _ = s.tree.directories.insert("a".into(), directory(1 << 12)),
        twice("directories", "kvm"),
    );
    expect(
        &|s| _ = s.tree.directories.insert("a".into(), directory(5 << 12)),
        StateError::Number(5 << 12),
    );
    expect(
        &|s| _ = s.tree.directories.insert("a".into(), directory(2 << 12)),
        StateError::Number(2 << 12),
    );
    let admit = |s: &mut State, identity| {
        s.tree.directories.get_mut("kvm").unwrap().admitted.push(identity)
    };
    expect(&|s| admit(s, 3), StateError::NoIdentity(3));
    expect(&|s| admit(s, 4), twice("directories", "identity 4"));
    expect(&|s| _ = s.tree.ledger.insert(("kvm".into(), 2), Left::default()), no_group("ledger"));
    let words = |table, group, words, of_group| StateError::Words { table, group, words, of_group };
    expect(
        &|s| _ = s.tree.ledger.insert(("a".into(), 0), Left::default()),
        words("ledger", 0, 0, 44),
    );
    expect(&|s| _ = s.tree.baselines.insert(account, [1; 3].into()), words("baselines", 1, 3, 141));
    let longer = words("baselines", 1, 142, 141);
    expect(&|s| _ = s.tree.baselines.insert(account, [1; 142].into()), longer);
    for wrong in [SavedAccount { publisher: 0, ..account }, SavedAccount { source: 0, ..account }] {
        expect(
            &|s| _ = s.tree.baselines.insert(wrong, [1; 141].into()),
            StateError::Zero("baselines"),
        );
    }
    for (source, parent) in [(0, 2), (1, 2), (2, 0), (2, 1), (2, 2)] {
        let wrong = StateError::Parent { source_id: source, parent };
        expect(&|s| _ = s.tree.parents.insert((7, source), parent), wrong);
    }
    expect(&|s| _ = s.tree.parents.insert((0, 2), 3), StateError::Zero("parents"));
    let wrong = SavedAccount { group: 2, ..account };
    expect(&|s| _ = s.tree.baselines.insert(wrong, [].into()), no_group("baselines"));
    drop(store);
    assert_eq!(place.read(), state(1));
}

#[test]
fn a_payload_is_as_documented() {
    let mut state = State::default();
    state.tree.next_block = 300;
    state.host.processes.push(Process { uid: 200, ..process(2) });
    state.host.folded.push_back(1 << 120);
    let mut two = [0; 16];
    two[0] = 2;
    let process = [&two[..], &[3], &[0xc8, 0xd9, 0x04], &[0xc8, 1], &[36], &[0], &[2]].concat();
    let mut last = [0; 16];
    last[15] = 1;
    let next_block = [0xac, 2];
    let payload = [&[0, 0, 1][..], &process, &next_block, &[0, 0, 0, 0, 0, 1], &last].concat();
    assert_eq!(state.encode().unwrap(), payload);
    assert_eq!(State::decode(&payload), Ok(state));

    // There is one way to write it.
    let refused = |payload: &[u8], error| assert_eq!(State::decode(payload), Err(error));
    refused(&[0x80, 0], StateError::Encoding("groups"));
    refused(&[0xff; 12], StateError::Encoding("groups"));
    refused(&[], StateError::Truncated);
    refused(&[0x80], StateError::Truncated);
    refused(&[&payload[..], &[0]].concat(), StateError::Trailing(1));
    let empty = State::default().encode().unwrap();
    assert_eq!(empty, [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for at in 0..empty.len() {
        // As many as can be said, of which there are none.
        let all = [&empty[..at], &[0xff; 9], &[1]].concat();
        refused(&all, StateError::Truncated);
    }
    refused(&[0, 0, 0, 1, 0, 0, 1, 0, 0], StateError::NoGroup { table: "ledger", group: 0 });
}

#[test]
fn few_bytes_do_not_become_any_number_of_words() {
    let histogram = ValueType::Histogram { buckets: 64, sum: false };
    let mut huge = GroupBuilder::new("huge");
    for n in 0..256 {
        huge = huge.value(Descriptor::new(format!("h{n}"), histogram, Semantics::Cumulative));
    }
    let huge = huge.build().unwrap();
    let mut state = State::default();
    state.tree.groups.push(huge.clone());
    let mut payload = state.encode().unwrap();
    // The tables of baselines, parents and of those that were folded.
    payload.truncate(payload.len() - 3);
    let entries = MAX_WORDS / huge.words() + 1;
    payload.extend([(entries & 0x7f) as u8 | 0x80, (entries >> 7) as u8]);
    for source in 0..entries {
        // Publisher, source, account, group, and a run of zeros.
        payload.extend([1; 16]);
        payload.extend([(source & 0x7f) as u8 | 0x80, (source >> 7) as u8 + 1, 0, 0]);
        payload.extend([0x80, 0x80, 1]);
    }
    payload.extend([0, 0]);
    assert!(payload.len() < 200_000);
    assert_eq!(State::decode(&payload), Err(StateError::TooLarge("words", MAX_WORDS)));
}

#[test]
fn a_fold_is_remembered() {
    let mut state = state(1);
    state.host.fold(7);
    assert_eq!(state.host.processes, [process(9)]);
    assert_eq!(state.host.folded, [3, 1, 7]);
    state.host.fold(3);
    assert_eq!(state.host.folded, [1, 7, 3]);
    state.host.forget(9);
    assert!(state.host.processes.is_empty());
    (100..100 + MAX_FOLDED as u128).for_each(|publisher| state.host.fold(publisher));
    assert_eq!((state.host.folded.len(), state.host.folded[0]), (MAX_FOLDED, 100));
    state.encode().unwrap();
}

/// Words of which many are 0, as those of histograms are.
fn words(len: usize) -> impl Strategy<Value = Box<[u64]>> {
    let word = prop_oneof![3 => Just(0), 1 => 0..300u64, 1 => any::<u64>()];
    vec(word, len).prop_map(Vec::into_boxed_slice)
}

fn any_state() -> impl Strategy<Value = State> {
    let sizes = vec(1..5usize, 1..4);
    let groups = sizes.prop_map(|sizes| {
        let group = |(n, size): (usize, &usize)| group(&format!("g{n}"), *size);
        sizes.iter().enumerate().map(group).collect::<Vec<_>>()
    });
    groups.prop_flat_map(|groups| {
        let lens: Vec<_> = groups.iter().map(|group| group.words()).collect();
        let n = groups.len();
        let of_group = move || {
            let lens = lens.clone();
            (0..n).prop_flat_map(move |group| (Just(group), words(lens[group]), words(lens[group])))
        };
        let accounts = || {
            let key = (1..4u128, prop_oneof![1..4u64, 1..u64::MAX], any::<bool>());
            vec((key, of_group()), 0..6).prop_map(|all| {
                let entry = |((publisher, source, departed), (group, words, _))| {
                    (SavedAccount { publisher, source, departed, group }, words)
                };
                all.into_iter().map(entry).collect()
            })
        };
        let ledger = vec(("([a-zA-Z0-9_.:-]{0,63})?", of_group()), 0..6).prop_map(|all| {
            let all = all.into_iter().filter(|(name, _)| !name.starts_with('.'));
            all.map(|(name, (group, raw, cleared))| ((name, group), Left { raw, cleared }))
                .collect()
        });
        let processes = btree_map(
            1..u128::MAX,
            (1..1u32 << 30, any::<u64>(), any::<u32>(), any::<bool>(), 1..=256u32),
            0..5,
        )
        .prop_map(|all| {
            let entry = |(publisher, (pid, start_time, uid, public, segments))| Process {
                publisher,
                pid,
                start_time,
                uid,
                gid: !uid,
                public,
                segments,
            };
            all.into_iter().map(entry).collect::<Vec<_>>()
        });
        let numbers =
            (vec((1..5u128, any::<u64>()), 0..6), btree_map("[a-z]{1,5}", 0..4096u64, 0..4));
        let state = (Just(groups), processes, numbers, ledger, accounts());
        state.prop_map(|(groups, processes, (grants, names), ledger, baselines)| {
            let tree = Saved { groups, ledger, baselines, ..Saved::default() };
            let host = HostState { processes, ..HostState::default() };
            let mut state = State { tree, host };
            for grant in grants {
                state.tree.parents.insert((grant.0, grant.1 | 2), (grant.1 ^ 1) | 4);
                if !state.tree.grants.contains_key(&grant) {
                    state.tree.grants.insert(grant, state.tree.next_block);
                    state.tree.next_block += 1;
                }
            }
            for (group, descriptor) in state.tree.groups.iter().enumerate() {
                for value in 0..descriptor.values().len() {
                    state.tree.identities.insert(state.tree.identities.len() * 3, (group, value));
                }
            }
            for (name, place) in names {
                let number = state.tree.next_block << 12 | place;
                state.tree.next_block += 1;
                let mut admitted: Vec<_> = state.tree.identities.keys().copied().collect();
                let by = place as usize % admitted.len();
                admitted.rotate_left(by);
                state.tree.directories.insert(name, SavedDirectory { number, admitted });
            }
            state
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_state_comes_back(
        state in any_state(), cuts in vec(any::<prop::sample::Index>(), 8),
    ) {
        let payload = state.encode().unwrap();
        prop_assert_eq!(State::decode(&payload).unwrap(), state);
        for len in cuts.iter().map(|cut| cut.index(payload.len())) {
            prop_assert!(State::decode(&payload[..len]).is_err());
        }
    }

    #[test]
    fn changed_bytes_are_refused_or_mean_something(
        state in any_state(), changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut payload = state.encode().unwrap();
        for (at, byte) in changes {
            let at = at.index(payload.len());
            payload[at] = byte;
        }
        if let Ok(state) = State::decode(&payload) {
            prop_assert_eq!(state.encode().unwrap(), payload);
        }
    }
}
