//! What a reader of a large host pays: a snapshot of 1000 machines of 64 vCPUs of 100 values into a
//! buffer that is used again, against a bare sweep of the same cells.
//!
//! `cargo bench -p statsfs-benches --bench sweep [-- --quick --json]`; takes about 200 MB.

#[path = "common/values.rs"]
mod values;

use std::time::Instant;

use statsfs::tree::Snapshot;
use statsfs::{Registry, RegistryOptions, Slot, Source, stats};
use statsfs_benches::{Comparison, Options, escape, pin, timed};
use values::Nth;

/// Values of each vCPU.
const VALUES: usize = 100;
type Value = Nth<VALUES>;

stats! {
    /// Many values.
    struct Vcpu: "vcpu" {
        /// This is {}.
        value: PerLabel<Counter, Value>,
    }
}

/// The sources, which keep the tree, and the slots.
struct Host {
    registry: Registry,
    _machines: Vec<Source>,
    slots: Vec<Slot<Vcpu>>,
}

fn host(machines: usize, vcpus: usize) -> Host {
    let options = RegistryOptions { segment_size: 4 << 20, ..RegistryOptions::default() };
    let registry = Registry::with_options(options).expect("a segment");
    let top = registry.create_source("kvm").expect("a source");
    let mut slots = Vec::with_capacity(machines * vcpus);
    let mut sources = vec![top.clone()];
    for m in 0..machines {
        let machine = registry.create_source(&format!("{m}-guest{m}")).expect("a source");
        for v in 0..vcpus {
            let vcpu = registry.create_source(&format!("vcpu{v}")).expect("a source");
            let slot = vcpu.add_values::<Vcpu>().expect("room for a slot");
            for n in 0..VALUES {
                slot.value[Nth(n)].add((m * v + n) as u64);
            }
            slots.push(slot);
            machine.add_subordinate(&vcpu).expect("a free name");
        }
        top.add_subordinate(&machine).expect("a free name");
        sources.push(machine);
    }
    top.register().expect("a free name");
    Host { registry, _machines: sources, slots }
}

fn main() {
    let options = Options::from_args();
    pin(0);
    let (machines, vcpus) = if options.quick { (20, 8) } else { (1000, 64) };
    let start = Instant::now();
    let host = host(machines, vcpus);
    options.say(format_args!(
        "{machines} machines of {vcpus} vCPUs of {VALUES} values, made in {:.1} s: {:?}",
        start.elapsed().as_secs_f64(),
        host.registry.usage()
    ));
    // As bare as it can be: the blocks' addresses are known, and taken in order.
    let mut blocks: Vec<&Vcpu> = host.slots.iter().map(|slot| &**slot).collect();
    blocks.sort_by_key(|block| std::ptr::from_ref(*block));
    let cells = || blocks.iter().flat_map(|block| block.value.iter());

    let mut copy: Vec<u64> = Vec::with_capacity(blocks.len() * VALUES);
    let start = Instant::now();
    let tree = host.registry.tree().expect("a registry's own segments");
    let mut snapshot = Snapshot::default();
    tree.snapshot(&mut snapshot);
    options.say(format_args!(
        "attached, validated and read for the first time in {:.1} s",
        start.elapsed().as_secs_f64()
    ));
    let mut c = Comparison::new("All values of a host");
    c.case("bare sweep: load and add", |n| {
        timed(|| {
            for _ in 0..n {
                escape(&cells().fold(0_u64, |sum, cell| sum.wrapping_add(cell.get())));
            }
        })
    });
    c.case("bare sweep: copy into a buffer", |n| {
        timed(|| {
            for _ in 0..n {
                copy.clear();
                copy.extend(cells().map(|cell| cell.get()));
                escape(&*copy);
            }
        })
    });
    c.case("snapshot into a buffer", |n| {
        timed(|| {
            for _ in 0..n {
                tree.snapshot(&mut snapshot);
                escape(&snapshot);
            }
        })
    });
    c.budget(3.0);
    c.run(options);
    // It is what was counted.
    let counted = cells().fold(0_u64, |sum, cell| sum.wrapping_add(cell.get()));
    let read =
        snapshot.cells().flat_map(|(_, words)| words).fold(0, |a: u64, b| a.wrapping_add(*b));
    assert_eq!(read, counted);
}
