//! A child made by fork(2) never counts into its parent's cells, cannot change its parent's sources, and
//! never waits for a lock that a thread of the parent held.

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use statsfs::value::{Group, GroupDescriptor, NoCells};
use statsfs::{Registry, Source, SourceError};
use support::{StopAtEnd, Tick, Work, number};

/// Runs `check` in a forked child, which must end with status 0.
fn in_child(check: impl FnOnce()) {
    // SAFETY: the child runs nothing but `check` and _exit(2). It may find locks held for ever, as those
    // of malloc are not; that the library needs none is what is tested.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        // SAFETY: plain system calls. The alarm kills a child that waits for ever.
        unsafe { libc::alarm(60) };
        let outcome = catch_unwind(AssertUnwindSafe(check));
        // SAFETY: a plain system call.
        unsafe { libc::_exit(i32::from(outcome.is_err())) };
    }
    let mut status = 0;
    // SAFETY: the pointer is to a live integer.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    assert!(
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
        "the child ended with status {status:#x}; it was killed by an alarm if that is 0xe"
    );
}

fn refused(registry: &Registry, top: &Source, child: &Source) {
    macro_rules! is_refused {
        ($what:expr) => {
            assert!(matches!($what, Err(SourceError::Forked)), stringify!($what));
        };
    }
    is_refused!(registry.create_source("in_child"));
    is_refused!(top.add_subordinate(child));
    is_refused!(top.remove_subordinate(child));
    is_refused!(child.register());
    is_refused!(top.revoke());
    is_refused!(top.add_values::<Work>());
    is_refused!(top.add_aggregates::<Work>());
    is_refused!(top.add_callback::<Tick>(Duration::from_millis(1), |_| ()));
    assert!(registry.segments().is_err());
    assert!(registry.start_thread().is_err());
    registry.usage();
    registry.wait_changed(0, Duration::from_millis(1));
    let slot = top.add_values_or_dummy::<Work>();
    slot.update(|c| c.work_done.inc());
}

#[test]
fn a_child_counts_for_itself() {
    let registry = Registry::new().unwrap();
    let top = registry.create_source("top").unwrap();
    top.register().unwrap();
    let child = registry.create_source("child").unwrap();
    let tree = registry.tree().unwrap();
    let slot = top.add_values::<Work>().unwrap();
    let tick = top.add_values::<Tick>().unwrap();
    top.add_callback::<statsfs_tests_support::Sampled>(Duration::from_millis(1), |slot| {
        slot.sampled_times.inc();
    })
    .unwrap();
    slot.update(|c| c.work_done.add(5));
    let before = registry.usage();
    in_child(|| {
        for _ in 0..1000 {
            slot.update(|c| c.work_done.inc());
            slot.work_time.record(1);
            tick.tick_count.inc();
        }
        assert_eq!(tick.tick_count.get(), 1000, "the child's cells begin at 0");
        refused(&registry, &top, &child);
        // And a child of the child.
        in_child(|| {
            slot.update(|c| c.work_done.inc());
            refused(&registry, &top, &child);
        });
        // A child's own registry is its own.
        let own = Registry::new().unwrap();
        let source = own.create_source("own").unwrap();
        source.register().unwrap();
        let in_own = source.add_values::<Tick>().unwrap();
        in_own.tick_count.add(3);
        assert_eq!(number(&own.tree().unwrap(), "own/tick_count"), 3);
    });
    assert_eq!(number(&tree, "top/work_done"), 5);
    assert_eq!(number(&tree, "top/work_time/count"), 0);
    assert_eq!(number(&tree, "top/tick_count"), 0);
    assert_eq!(registry.usage(), before);
    // The parent goes on.
    slot.update(|c| c.work_done.inc());
    assert_eq!(number(&tree, "top/work_done"), 6);
    top.add_subordinate(&child).unwrap();
    top.remove_subordinate(&child).unwrap();
    let sampled = number(&tree, "top/sampled_times");
    while number(&tree, "top/sampled_times") == sampled {
        thread::sleep(Duration::from_millis(1));
    }
}

/// A group whose description is being made when the process forks, and so never is in the child.
struct BeingMade;

// SAFETY: without fields there is nothing that a description could be wrong about.
unsafe impl Group for BeingMade {
    type Latched = NoCells;

    fn descriptor() -> &'static Arc<GroupDescriptor> {
        panic!("the child would wait for ever")
    }
}

#[test]
fn a_child_does_not_wait_for_what_its_parent_was_making() {
    let registry = Registry::new().unwrap();
    let top = registry.create_source("top").unwrap();
    top.register().unwrap();
    in_child(|| {
        assert!(matches!(top.add_values::<BeingMade>(), Err(SourceError::Forked)));
        assert!(matches!(top.add_aggregates::<BeingMade>(), Err(SourceError::Forked)));
        let sampled = top.add_callback::<BeingMade>(Duration::from_millis(1), |_| ());
        assert!(matches!(sampled, Err(SourceError::Forked)));
        drop(top.add_values_or_dummy::<BeingMade>());
    });
}

mod statsfs_tests_support {
    statsfs::stats! {
        /// What a callback counts.
        pub struct Sampled: "sampled", prefix "sampled_" {
            /// Samples.
            sampled_times: Counter,
        }
    }
}

#[test]
fn a_child_of_a_busy_process_never_waits() {
    let registry = Registry::new().unwrap();
    let top = registry.create_source("top").unwrap();
    top.register().unwrap();
    let child = registry.create_source("child").unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for n in 0..3 {
            let (registry, top, stop) = (&registry, &top, &stop);
            scope.spawn(move || {
                while !stop.load(SeqCst) {
                    let source = registry.create_source(&format!("s{n}")).unwrap();
                    top.add_subordinate(&source).unwrap();
                    let slot = source.add_values::<Work>().unwrap();
                    slot.update(|c| c.work_done.inc());
                    top.remove_subordinate(&source).unwrap();
                }
            });
        }
        let _stop = StopAtEnd(&stop);
        let slot = top.add_values::<Work>().unwrap();
        for _ in 0..support::rounds(200) {
            in_child(|| {
                refused(&registry, &top, &child);
                // Dropping what the child inherited asks for the same locks. What is forgotten here, the
                // other tests and the parent still use.
                drop(registry.create_source("more"));
                // SAFETY: the copy is dropped in the child only, which never drops the original.
                drop(unsafe { std::ptr::read(&slot) });
                // SAFETY: as above.
                drop(unsafe { std::ptr::read(&top) });
                // SAFETY: as above.
                drop(unsafe { std::ptr::read(&registry) });
            });
        }
    });
    let tree = registry.tree().unwrap();
    assert!(number(&tree, "top/.departed/work_done") > 0);
}
