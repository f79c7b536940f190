//! Machines that are none: the sources and values of as many vCPUs, in one process.

use std::cell::Cell;

use statsfs::{Registry, RegistryOptions, Slot, Source, stats};

use crate::values::Nth;

/// Values of each vCPU.
pub const VALUES: usize = 100;
type Reason = Nth<{ VALUES - 1 }>;

stats! {
    /// One vCPU: counters that are seen together or not at all, as those of a real one.
    pub consistent struct Vcpu: "vcpu" {
        /// Exits.
        user_exits: Counter,
        /// Exits because {}.
        user_exit: PerLabel<Counter, Reason>,
    }

    /// What the vCPU that really counts measures beside.
    pub struct Timing: "timing" {
        /// Time.
        user_handle_time: Histogram<Nanoseconds> { buckets: 40 },
    }
}

/// How many machines, of how many vCPUs.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub machines: usize,
    pub vcpus: usize,
}

impl Size {
    /// Sources: the machines and their vCPUs.
    pub fn sources(self) -> usize {
        self.machines * (1 + self.vcpus)
    }

    /// Values of the vCPUs.
    pub fn values(self) -> usize {
        self.machines * self.vcpus * VALUES
    }
}

/// The machines of one process.
pub struct Machines {
    pub registry: Registry,
    /// By machine and vCPU.
    pub vcpus: Vec<Source>,
    pub slots: Vec<Slot<Vcpu>>,
    _others: Vec<Source>,
}

impl Machines {
    /// Makes them, each counter counted up to something.
    pub fn new(first: usize, size: Size) -> Self {
        let options = RegistryOptions {
            segment_size: 4 << 20,
            max_segments: 256,
            ..RegistryOptions::default()
        };
        let registry = Registry::with_options(options).expect("a segment");
        let top = registry.create_source("kvm").expect("a source");
        let (mut vcpus, mut slots, mut others) = (Vec::new(), Vec::new(), vec![top.clone()]);
        for m in first..first + size.machines {
            let machine = registry.create_source(&format!("guest{m}")).expect("a source");
            for v in 0..size.vcpus {
                let vcpu = registry.create_source(&format!("vcpu{v}")).expect("a source");
                let slot = vcpu.add_values::<Vcpu>().expect("room for a slot");
                slot.update(|counters| {
                    counters.user_exits.add((1 + m * v) as u64);
                    (0..VALUES - 1)
                        .for_each(|n| counters.user_exit[Nth(n)].add((m * v + n) as u64));
                });
                slots.push(slot);
                machine.add_subordinate(&vcpu).expect("a free name");
                vcpus.push(vcpu);
            }
            top.add_subordinate(&machine).expect("a free name");
            others.push(machine);
        }
        top.register().expect("a free name");
        Self { registry, vcpus, slots, _others: others }
    }

    /// The exits of all.
    pub fn exits(&self) -> u64 {
        self.cells().iter().map(|cells| cells.user_exits.get()).sum()
    }

    /// Each vCPU's counters, as bare as they can be, in the order of their addresses.
    pub fn cells(&self) -> Vec<&VcpuLatched> {
        let of = |slot: &Slot<Vcpu>| {
            let first = Cell::new(None);
            slot.update(|copy| first.set(first.get().or(Some(std::ptr::from_ref(copy)))));
            first.get().expect("an update runs")
        };
        let mut all: Vec<_> = self.slots.iter().map(of).collect();
        all.sort_unstable();
        // SAFETY: a slot's block, which the copy is in, stays as long as the slot, which outlives what is
        // borrowed from it here; it consists of atomics.
        all.into_iter().map(|cells| unsafe { &*cells }).collect()
    }
}
