//! What a counter costs elsewhere: the crates that Rust programs usually count with.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, RwLock};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};

/// The least recorder that a program could scrape: every counter is an atomic in a map by key.
#[derive(Default)]
pub struct MapRecorder {
    counters: RwLock<HashMap<Key, Arc<AtomicU64>>>,
}

impl Recorder for MapRecorder {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        if let Some(known) = self.counters.read().expect("no panic under the lock").get(key) {
            return Counter::from_arc(known.clone());
        }
        let mut counters = self.counters.write().expect("no panic under the lock");
        Counter::from_arc(counters.entry(key.clone()).or_default().clone())
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

/// Labels as prometheus-client takes them.
pub type Labels = Vec<(String, String)>;
/// A family of its counters.
pub type Family = prometheus_client::metrics::family::Family<
    Labels,
    prometheus_client::metrics::counter::Counter,
>;

/// One of each, as a program would hold it.
pub struct Rivals {
    pub prometheus: prometheus::IntCounter,
    pub prometheus_family: prometheus::IntCounterVec,
    pub client: prometheus_client::metrics::counter::Counter,
    pub client_family: Family,
    pub client_labels: Labels,
    pub metrics: Counter,
}

impl Rivals {
    /// Makes all, and installs the recorder for `counter!`.
    pub fn new() -> Self {
        let opts = || prometheus::Opts::new("user_exits", "Times KVM_RUN returned.");
        metrics::set_global_recorder(MapRecorder::default()).expect("no recorder yet");
        Self {
            prometheus: prometheus::IntCounter::with_opts(opts()).expect("a valid name"),
            prometheus_family: prometheus::IntCounterVec::new(opts(), &["reason"])
                .expect("a valid name"),
            client: Default::default(),
            client_family: Family::default(),
            client_labels: vec![("reason".into(), "io_in".into())],
            metrics: metrics::counter!("user_exits"),
        }
    }
}
