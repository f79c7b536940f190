//! A real Prometheus, which collects over the loop-back interface, and its answers.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value as Json;

use crate::http::try_ask;
use crate::running::wait_until;
use crate::vmm::end_with_test;

/// The configuration of one that collects from one place, each second.
pub fn collecting_from(address: &str) -> String {
    format!(
        "global: {{ scrape_interval: 1s, scrape_timeout: 1s }}\n\
         scrape_configs: [{{ job_name: host, static_configs: [{{ targets: ['{address}'] }}] }}]\n"
    )
}

/// A running Prometheus. Ended when dropped.
#[derive(Debug)]
pub struct Prometheus {
    child: Child,
    address: String,
}

impl Prometheus {
    /// Starts one with this configuration, in a directory that it makes, and waits until it has collected from the one place
    /// that it collects from.
    ///
    /// # Panics
    /// If it can not be started.
    pub fn start(directory: &Path, config: &str) -> Self {
        fs::create_dir_all(directory).expect("a place");
        let path = directory.join("config.yml");
        fs::write(&path, config).expect("it is ours");
        // A port that was free just now.
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = free.expect("a port").to_string();
        let log = File::create(directory.join("log")).expect("it is ours");
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", path.display()));
        command.arg(format!("--storage.tsdb.path={}", directory.join("data").display()));
        command.arg(format!("--web.listen-address={address}"));
        end_with_test(&mut command);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        let child = child.expect("`apt-get install -y --no-install-recommends prometheus`");
        let prometheus = Self { child, address };
        wait_until("Prometheus", || prometheus.number("up").filter(|up| *up == 1.0));
        prometheus
    }

    /// What its interface says at a path, with these parameters; nothing while it is only starting.
    ///
    /// # Panics
    /// If it says that something is wrong.
    #[track_caller]
    pub fn api(&self, path: &str, parameters: &[(&str, &str)]) -> Option<Json> {
        let parameters: Vec<_> =
            parameters.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
        let url = format!("http://{}/api/v1/{path}?{}", self.address, parameters.join("&"));
        let answer = try_ask(&url, "application/json").ok()?;
        if answer.status == 503 {
            return None;
        }
        let mut json: Json = serde_json::from_str(&answer.text)
            .unwrap_or_else(|error| panic!("{url}: {error}: {}", answer.text));
        assert_eq!(json["status"], "success", "{parameters:?}: {}", answer.text);
        Some(json["data"].take())
    }

    /// What it answers to a query: samples, each with when it was made.
    ///
    /// # Panics
    /// If the query is wrong.
    #[track_caller]
    pub fn query(&self, query: &str) -> Vec<(f64, f64)> {
        let Some(data) = self.api("query", &[("query", query)]) else { return Vec::new() };
        let series = data["result"].as_array().expect("a list");
        let samples = series.iter().flat_map(|series| match &series["values"] {
            Json::Array(samples) => samples.clone(),
            _ => vec![series["value"].clone()],
        });
        let number = |number: &Json| number.as_str().and_then(|text| text.parse().ok());
        samples
            .map(|sample| {
                (sample[0].as_f64().expect("a time"), number(&sample[1]).expect("a number"))
            })
            .collect()
    }

    /// The number that a query has one of.
    ///
    /// # Panics
    /// If the query is wrong.
    #[track_caller]
    pub fn number(&self, query: &str) -> Option<f64> {
        match self.query(query)[..] {
            [(_, number)] => Some(number),
            _ => None,
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A text as a part of a URL.
fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}
