//! Every reason for which an operation on a source is refused, and that nothing has changed then.

mod support;

use statsfs::value::{
    Aggregations, Descriptor, GroupBuilder, GroupDescriptor, GroupError, Semantics, ValueType,
};
use statsfs::{Registry, RegistryError, RegistryOptions, Source, SourceError};
use std::sync::Arc;
use support::{Tick, Work, flat, number};

fn counter(group: &'static str, values: &[&'static str]) -> Arc<GroupDescriptor> {
    let builder = values.iter().fold(GroupBuilder::new(group), |builder, name| {
        builder.value(Descriptor::new(*name, ValueType::U64, Semantics::Cumulative))
    });
    builder.build().unwrap()
}

fn registered(registry: &Registry, name: &str) -> Source {
    let source = registry.create_source(name).unwrap();
    source.register().unwrap();
    source
}

/// Refuses with the given reason, whose message has these words in it.
macro_rules! refused {
    ($what:expr, $pattern:pat, $words:expr) => {{
        let error = $what.expect_err(stringify!($what));
        assert!(matches!(error, $pattern), "{error:?}");
        let text = error.to_string();
        assert!(text.contains($words), "{text:?} says nothing of {:?}", $words);
    }};
}

#[test]
fn every_source_error_has_its_cause() {
    let registry = Registry::new().unwrap();
    let long = "x".repeat(64);
    for name in ["", ".hidden", "a/b", "ä", "a b", &long] {
        refused!(registry.create_source(name), SourceError::Name(_), "1 to 63 bytes");
    }
    assert!(registry.create_source(&long[1..]).is_ok());
    let nine = (0..9).fold(registry.source("s"), |builder, n| builder.label(format!("k{n}"), "v"));
    refused!(nine.create(), SourceError::Labels(9), "at most 8 labels");
    let too_long = ("v".repeat(65), "k".repeat(33));
    for (key, value) in [
        ("", "v"),
        ("Key", "v"),
        ("9k", "v"),
        (&*too_long.1, "v"),
        ("k", &*too_long.0),
        ("k", "a\nb"),
    ] {
        let one = registry.source("s").label(key, value);
        refused!(one.create(), SourceError::Label(..), "not acceptable");
    }
    let twice = registry.source("s").label("k", "v").label("k", "w");
    refused!(twice.create(), SourceError::Label(..), "once");
    let fits = registry.source("s").label(&too_long.1[1..], &too_long.0[1..]);
    fits.create().unwrap();

    let top = registered(&registry, "top");
    let child = registry.create_source("child").unwrap();
    refused!(top.remove_subordinate(&child), SourceError::NotSubordinate { .. }, "\"child\"");
    top.add_subordinate(&child).unwrap();
    refused!(top.add_subordinate(&child), SourceError::AlreadyExists { .. }, "\"top\"");
    refused!(child.register(), SourceError::HasParent { .. }, "\"top\"");
    let other = registered(&registry, "other");
    refused!(other.remove_subordinate(&child), SourceError::NotSubordinate { .. }, "\"other\"");
    let twin = registry.create_source("child").unwrap();
    refused!(top.add_subordinate(&twin), SourceError::AlreadyExists { .. }, "\"child\"");

    let alone = registry.create_source("alone").unwrap();
    refused!(alone.add_subordinate(&alone), SourceError::Cycle(_), "\"alone\"");
    let under = registry.create_source("under").unwrap();
    alone.add_subordinate(&under).unwrap();
    refused!(under.add_subordinate(&alone), SourceError::Cycle(_), "below itself");

    let elsewhere = Registry::new().unwrap().create_source("elsewhere").unwrap();
    refused!(top.add_subordinate(&elsewhere), SourceError::OtherRegistry, "different registries");

    top.remove_subordinate(&child).unwrap();
    refused!(top.add_subordinate(&child), SourceError::Removed, "was removed");
    refused!(child.register(), SourceError::Removed, "was removed");
    refused!(child.revoke(), SourceError::Removed, "was removed");
    refused!(child.add_values::<Work>(), SourceError::Removed, "was removed");
    refused!(child.add_aggregates::<Work>(), SourceError::Removed, "was removed");
    refused!(top.remove_subordinate(&child), SourceError::Removed, "was removed");
    refused!(child.add_subordinate(&twin), SourceError::Removed, "was removed");
    let never = std::time::Duration::MAX;
    refused!(
        child.add_callback::<Work>(never, |_| panic!("it is not called")),
        SourceError::Removed,
        "was removed"
    );
    // `Forked` is in tests/fork.rs.
}

#[test]
fn sources_nest_64_deep_and_no_deeper() {
    let registry = Registry::new().unwrap();
    let mut chain = vec![registered(&registry, "s")];
    for _ in 1..64 {
        let next = registry.create_source("s").unwrap();
        chain.last().unwrap().add_subordinate(&next).unwrap();
        chain.push(next);
    }
    let slot = chain[63].add_values::<Work>().unwrap();
    slot.update(|c| c.work_done.inc());
    let next = registry.create_source("s").unwrap();
    refused!(chain[63].add_subordinate(&next), SourceError::TooDeep(64), "64 deep");
    // A reader takes the same.
    let tree = registry.tree().unwrap();
    assert_eq!(number(&tree, &format!("{}work_done", "s/".repeat(64))), 1);
    // What is attached to nothing may be as deep, and be registered.
    let mut chain = vec![registry.create_source("t").unwrap()];
    for _ in 1..64 {
        let above = registry.create_source("t").unwrap();
        above.add_subordinate(chain.last().unwrap()).unwrap();
        chain.push(above);
    }
    let above = registry.create_source("t").unwrap();
    refused!(above.add_subordinate(&chain[63]), SourceError::TooDeep(64), "64 deep");
    chain[63].register().unwrap();
    assert_eq!(tree.usage().directories, 1 + 64 + 64);
}

#[test]
fn registries_say_what_is_wrong_with_their_options() {
    let with = |segment_size, max_segments| {
        Registry::with_options(RegistryOptions { segment_size, max_segments, ..Default::default() })
    };
    for size in [0, 8192, 16385, 64 << 20 | 4096, usize::MAX] {
        refused!(with(size, 1), RegistryError::SegmentSize(_), "16 KiB to 64 MiB");
    }
    for segments in [0, 257] {
        refused!(with(16 << 10, segments), RegistryError::MaxSegments(_), "1 to 256");
    }
    assert!(with(16 << 10, 256).is_ok());
}

#[test]
fn a_full_registry_changes_nothing() {
    let options = RegistryOptions { segment_size: 32 << 10, max_segments: 1, ..Default::default() };
    let registry = Registry::with_options(options).unwrap();
    let top = registered(&registry, "top");
    let middle = registry.create_source("middle").unwrap();
    top.add_subordinate(&middle).unwrap();
    let tree = registry.tree().unwrap();
    // Groups of ever more values, until one does not fit: its accumulators may, its block not.
    let mut slots = Vec::new();
    let mut before = (registry.usage(), flat(&tree));
    let mut refusals = 0;
    for n in 0..200 {
        let source = registry.create_source(&format!("s{n}"));
        let Ok(source) = source else {
            refusals += 1;
            continue;
        };
        if let Err(error) = middle.add_subordinate(&source) {
            panic!("this takes no memory: {error}");
        }
        before = (registry.usage(), flat(&tree));
        let name: &'static str = format!("value{n}").leak();
        match source.add_group(&counter(name, &[name])) {
            Ok(slot) => {
                slot.add(0, 1);
                slots.push(slot);
            }
            Err(error) => {
                let SourceError::SegmentFull { segments: 1, limit: 1, size: 32768 } = error else {
                    panic!("{error}");
                };
                assert!(error.to_string().contains("max_segments"), "{error}");
                assert_eq!((registry.usage(), flat(&tree)), before, "nothing has changed");
                refusals += 1;
                // What is smaller may still fit; the name is as free as before.
                middle.remove_subordinate(&source).unwrap();
                if let Ok(named) = registry.create_source(name) {
                    middle.add_subordinate(&named).unwrap();
                    middle.remove_subordinate(&named).unwrap();
                }
            }
        }
    }
    assert!(refusals > 10 && slots.len() > 10, "{refusals}, {}: {before:?}", slots.len());
    // Leaving needs no memory.
    top.revoke().unwrap();
    drop(slots);
    assert_eq!(number(&tree, ".departed/value0"), 1);
}

#[test]
fn a_group_whose_description_is_long_finds_room() {
    let registry = Registry::new().unwrap();
    let top = registered(&registry, "top");
    let mut group = GroupBuilder::new("long");
    for n in 0..1024 {
        let value = Descriptor::new(format!("value{n}"), ValueType::U64, Semantics::Cumulative);
        group = group.value(value.help("x".repeat(255)).family("y".repeat(47)));
    }
    let slot = top.add_group(&group.build().unwrap()).unwrap();
    slot.add(1023, 5);
    let tree = registry.tree().unwrap();
    assert_eq!(number(&tree, "top/value1023"), 5);
    assert!(registry.usage().segments <= 2);
}

#[test]
fn terminals_are_told_nothing() {
    let value =
        |help: &'static str| Descriptor::new("n", ValueType::U64, Semantics::Cumulative).help(help);
    let group = |help: &'static str| GroupBuilder::new("g").help(help);
    assert!(group("It is 5 µs, “about”.").value(value("Ça va.")).build().is_ok());
    for help in ["\x1b[2J", "a\nb", "\0", "a\tb", "\u{9b}2J", "\x7f"] {
        refused!(group(help).value(value("")).build(), GroupError::Help, "control characters");
        refused!(group("").value(value(help)).build(), GroupError::Value { .. }, "control");
    }
}

#[test]
fn no_name_stands_twice_in_a_directory() {
    let registry = Registry::new().unwrap();
    let tree = registry.tree().unwrap();
    let top = registered(&registry, "top");
    let _one = top.add_group(&counter("one", &["a", "b"])).unwrap();
    // Another group's, and that of another version of the same group: within one source, a value of
    // the same identity would still be there twice.
    refused!(
        top.add_group(&counter("two", &["b", "c"])),
        SourceError::AlreadyExists { .. },
        "\"b\""
    );
    refused!(
        top.add_group(&counter("one", &["a", "b", "c"])),
        SourceError::AlreadyExists { .. },
        "\"a\""
    );
    // Below it, that version adds up with it.
    let below = registry.create_source("below").unwrap();
    top.add_subordinate(&below).unwrap();
    below.add_group(&counter("one", &["b", "c"])).unwrap().add(0, 3);
    assert_eq!(number(&tree, "top/b"), 3);
    refused!(
        top.add_group(&counter("one", &["a", "b", "c"])),
        SourceError::AlreadyExists { .. },
        "\"a\""
    );
    refused!(below.add_group(&counter("two", &["a"])), SourceError::AlreadyExists { .. }, "\"a\"");
    // Values and subordinates, in both orders, and through hidden sources.
    for name in ["a", "c"] {
        let source = registry.create_source(name).unwrap();
        refused!(top.add_subordinate(&source), SourceError::AlreadyExists { .. }, name);
        let hidden = registry.source("hidden").hidden().create().unwrap();
        hidden.add_subordinate(&source).unwrap();
        refused!(top.add_subordinate(&hidden), SourceError::AlreadyExists { .. }, name);
    }
    let taken = registry.create_source("taken").unwrap();
    top.add_subordinate(&taken).unwrap();
    refused!(
        below.add_group(&counter("three", &["taken"])),
        SourceError::AlreadyExists { .. },
        "\"taken\""
    );
    // Aggregates' names.
    let several = GroupBuilder::new("several")
        .value(
            Descriptor::new("v", ValueType::S32, Semantics::Floating)
                .aggregate(Aggregations::SUM | Aggregations::MIN),
        )
        .build()
        .unwrap();
    let min = registry.create_source("v.min").unwrap();
    top.add_subordinate(&min).unwrap();
    let leaf = registry.create_source("leaf").unwrap();
    let _own = leaf.add_group(&several).unwrap();
    refused!(top.add_subordinate(&leaf), SourceError::AlreadyExists { .. }, "\"v.min\"");
    let _own = top.add_group(&several).unwrap();
    top.remove_subordinate(&min).unwrap();
    top.add_subordinate(&leaf).unwrap();
    refused!(
        top.add_subordinate(&registry.create_source("v.min").unwrap()),
        SourceError::AlreadyExists { .. },
        "\"v.min\""
    );
    // The root shows no values, so they take no names there.
    let vm = registry.create_source("vm").unwrap();
    let _vm = vm.add_group(&counter("vm_values", &["vm"])).unwrap();
    vm.register().unwrap();
    // The tree that was shown to somebody shows no name twice.
    flat(&tree);
    let dir = support::node(&tree, "top").unwrap();
    let names: Vec<_> = support::list(&tree, dir, 3).unwrap();
    let set: std::collections::HashSet<_> = names.iter().map(|(name, _)| name).collect();
    assert_eq!(set.len(), names.len(), "{names:?}");
}

#[test]
fn explicit_aggregates_of_a_hidden_source_take_no_names_from_others() {
    let registry = Registry::new().unwrap();
    let tree = registry.tree().unwrap();
    let top = registered(&registry, "top");
    let hidden = registry.source("hidden").hidden().create().unwrap();
    top.add_subordinate(&hidden).unwrap();
    hidden.add_aggregates::<Work>().unwrap();
    let named = registry.create_source("work_done").unwrap();
    top.add_subordinate(&named).unwrap();
    let dir = support::node(&tree, "top").unwrap();
    let names = support::list(&tree, dir, 100).unwrap();
    assert_eq!(names.iter().filter(|(name, _)| name == "work_done").count(), 1, "{names:?}");
}

/// Keeps the messages of this thread.
#[derive(Clone, Default)]
struct Log(std::sync::Arc<std::sync::Mutex<Vec<String>>>);

impl tracing::Subscriber for Log {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct Text(String);
        impl tracing::field::Visit for Text {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0 += &format!("{}={value:?} ", field.name());
            }
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        self.0.lock().unwrap().push(text.0);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn counting_in_a_source_that_is_nowhere_is_logged() {
    let registry = Registry::new().unwrap();
    let log = Log::default();
    let messages = || std::mem::take(&mut *log.0.lock().unwrap());
    tracing::subscriber::with_default(log.clone(), || {
        let forgotten = registry.create_source("forgotten").unwrap();
        let slot = forgotten.add_values::<Tick>().unwrap();
        drop(forgotten);
        let [message] = &messages()[..] else { panic!("one message") };
        assert!(
            message.contains("\"forgotten\"") && message.contains("never registered"),
            "{message}"
        );
        drop(slot);
        // As it should be: registered, not counted in any more, or sampled.
        let registered = registry.create_source("registered").unwrap();
        let slot = registered.add_values::<Tick>().unwrap();
        registered.register().unwrap();
        drop(registered);
        slot.tick_count.inc();
        let idle = registry.create_source("idle").unwrap();
        drop(idle.add_values::<Tick>().unwrap());
        drop(idle);
        let sampled = registry.create_source("sampled").unwrap();
        let interval = std::time::Duration::from_secs(1);
        sampled.add_callback::<Tick>(interval, |slot| slot.tick_count.inc()).unwrap();
        drop(sampled);
        assert_eq!(messages(), [""; 0]);
    });
}
