//! The groups of the test.

use std::sync::{Arc, LazyLock};

use statsfs::value::{
    Aggregations, Descriptor, Group, GroupBuilder, GroupDescriptor, Semantics, Unit, ValueType,
};

use Semantics::{Cumulative, Floating, Peak};

/// Every type, kind and semantics; two versions of one group that share a value; groups with the same
/// value name that may not meet; one without anything cumulative.
pub static GROUPS: LazyLock<Vec<Arc<GroupDescriptor>>> = LazyLock::new(|| {
    let value = |name: &'static str, ty, semantics, aggregations| {
        Descriptor::new(name, ty, semantics).aggregate(aggregations)
    };
    let histogram = |buckets, sum| ValueType::Histogram { buckets, sum };
    let (sum, none, all) = (Aggregations::SUM, Aggregations::NONE, Aggregations::ALL);
    let (min, max) = (Aggregations::MIN, Aggregations::MAX);
    let groups = [
        GroupBuilder::new("alpha")
            .value(value("a", ValueType::U64, Cumulative, sum).help("The first version's."))
            .value(value("b", ValueType::S32, Floating, all))
            .value(value("c", ValueType::U8, Cumulative, sum))
            .value(value("h", histogram(4, true), Cumulative, sum).unit(Unit::NANOSECONDS)),
        GroupBuilder::new("alpha")
            .consistent()
            .value(value("d", ValueType::U32, Peak, max))
            .value(value("a", ValueType::U64, Cumulative, sum).help("The second version's.")),
        GroupBuilder::new("beta")
            .consistent()
            .value(value("e", ValueType::Bool, Floating, Aggregations::COUNT_NONZERO))
            .value(value("f", ValueType::U16, Floating, none))
            .value(value("k", ValueType::U64, Cumulative, sum | min | max))
            .value(value("p", ValueType::S8, Peak, max | min))
            .value(value("q", ValueType::U16, Cumulative, sum | Aggregations::AVG)),
        GroupBuilder::new("gamma").value(value("a", ValueType::U64, Cumulative, sum)),
        GroupBuilder::new("delta")
            .value(value("i", histogram(3, false), Cumulative, none))
            .value(value("m", ValueType::U64, Cumulative, min))
            .value(value("n", ValueType::U32, Cumulative, none))
            .value(value("x", histogram(64, true), Cumulative, sum)),
        GroupBuilder::new("epsilon")
            .value(value("s", ValueType::S64, Floating, sum | Aggregations::AVG))
            .value(value("t", ValueType::S8, Floating, min))
            .value(value("z", ValueType::S16, Floating, Aggregations::COUNT_ZERO)),
    ];
    let mut groups: Vec<_> = groups.into_iter().map(|group| group.build().unwrap()).collect();
    groups.push(Declared::descriptor().clone());
    groups
});

/// The number of `Declared` among the groups.
pub const DECLARED: usize = 6;

statsfs::stats! {
    /// Groups with explicit aggregates are declared ones.
    pub struct Declared: "zeta" {
        /// Has a name that others have too.
        a: Counter,
        /// Has aggregates but no sum.
        y: Gauge<i32> { aggregate: [min, max] },
    }
}
