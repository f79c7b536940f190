//! The dashboard, the configuration and the rules for Prometheus: a real one that collects from a server with guests has
//! data for each query of theirs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value as Json;
use tests::guest::{Mode, NO_MEMORY, NO_PORT, Op, Step, disk_kernel};
use tests::host::Host;
use tests::packages::require;
use tests::prometheus::Prometheus;
use tests::running::{Running, wait_until};
use tests::tap;
use tests::vmm::Vmm;

fn resource(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../resources").join(path)
}

fn dashboard() -> Json {
    serde_json::from_str(&fs::read_to_string(resource("grafana/statsfs.json")).unwrap()).unwrap()
}

fn list(json: &Json) -> &[Json] {
    json.as_array().unwrap_or_else(|| panic!("no list: {json}"))
}

#[track_caller]
fn text(json: &Json) -> &str {
    json.as_str().unwrap_or_else(|| panic!("no text: {json}"))
}

/// What variables a text uses: `$name` and `${name}`, but for Grafana's own.
fn variables(text: &str) -> BTreeSet<&str> {
    let all = text.split('$').skip(1).map(|rest| rest.trim_start_matches('{'));
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let all = all.map(|rest| &rest[..rest.find(|c| !is_name(c)).unwrap_or(rest.len())]);
    // A lone one is the end of an expression.
    all.filter(|name| !name.is_empty() && !name.starts_with("__")).collect()
}

#[test]
fn the_dashboard_is_whole() {
    let dashboard = dashboard();
    let defined = list(&dashboard["templating"]["list"]);
    let defined: BTreeSet<_> = defined.iter().map(|variable| text(&variable["name"])).collect();
    assert_eq!(defined, BTreeSet::from(["datasource", "instance", "vm"]));
    let whole = fs::read_to_string(resource("grafana/statsfs.json")).unwrap();
    assert_eq!(
        variables(&whole),
        defined,
        "all that are used are defined, and all that are defined are used"
    );

    let (mut ids, mut titles, mut taken) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
    for panel in list(&dashboard["panels"]) {
        let title = text(&panel["title"]);
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: its id is another's");
        assert!(titles.insert(title), "{title} is there twice");
        let place = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        let (x, y, w, h) = (place("x"), place("y"), place("w"), place("h"));
        assert!(w > 0 && h > 0 && x + w <= 24, "{title} is not in the grid");
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            let other = taken.insert(cell, title);
            assert_eq!(other, None, "{title} lies over another one");
        }
        if panel["type"] == "row" {
            continue;
        }
        assert!(text(&panel["description"]).ends_with('.'), "{title} says what it is");
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        let unit = match text(&panel["type"]) {
            "heatmap" => &panel["options"]["yAxis"]["unit"],
            "table" => &panel["fieldConfig"]["overrides"][0]["properties"][0]["value"],
            _ => &panel["fieldConfig"]["defaults"]["unit"],
        };
        // Those of Grafana's that are of use here.
        let units = ["short", "bytes", "ops", "s", "percentunit", "Bps", "iops", "pps"];
        assert!(units.contains(&text(unit)), "{title}: {unit}");
        let targets = list(&panel["targets"]);
        let names: BTreeSet<_> = targets.iter().map(|target| text(&target["refId"])).collect();
        assert!(!targets.is_empty() && names.len() == targets.len(), "{title}");
        for target in targets {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            // All of a host or of a guest can be looked at alone.
            assert!(
                variables(text(&target["expr"])).contains("instance"),
                "{title}: {}",
                target["expr"]
            );
        }
    }
    // There is nothing between them.
    let bottom = taken.keys().map(|(_, y)| y + 1).max().unwrap();
    assert!((0..bottom).all(|y| taken.contains_key(&(0, y))), "there is a gap");
}

/// The guests: one with all kinds of exits, and one with a disk that it reads, and a network.
fn guests(host: &Host) -> [Running; 2] {
    let steps = [
        Step::new(Op::In8, 50, NO_PORT),
        Step::new(Op::Out8, 50, NO_PORT),
        Step::new(Op::Read32, 20, NO_MEMORY),
        Step::new(Op::Write32, 20, NO_MEMORY),
        Step::new(Op::Hlt, 5, 0),
        Step::new(Op::Again, 1, 0),
    ];
    let exits = Vmm::new(Mode::Long, &steps).cpus(2).published_to(host);
    let disk = Vmm::of_kernel(&disk_kernel()).published_to(host);
    let file = disk.directory().join("disk");
    File::create(&file).unwrap().set_len(1 << 20).unwrap();
    let disk = disk.args(["--disk".as_ref(), file.as_os_str()]);
    let disk = disk.args(["--net", &format!("tap={}", tap::NAME), "--memory", "64M"]);
    // The machine has few CPUs.
    [exits.nice().start(), disk.nice().start()]
}

/// The metrics that a query names.
fn metrics(query: &str) -> BTreeSet<&str> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = query.split(|c| !is_name(c));
    words
        .filter(|word| *word == "up" || word.starts_with("kvm_") || word.starts_with("statsfs_"))
        .collect()
}

#[test]
fn a_prometheus_has_data_for_each_query_of_the_dashboard_and_of_the_rules() {
    // A network of its own: the interface of one guest, and the loop-back one for Prometheus.
    tap::set_up();
    let host = Host::with(&["--listen", "127.0.0.1:0", "--include-private"]);
    let address = host.metrics();
    let guests = guests(&host);
    let config = fs::read_to_string(resource("prometheus/prometheus.yml")).unwrap();
    let mut replaced = config.clone();
    for (is, becomes) in [
        ("scrape_interval: 15s", "scrape_interval: 1s"),
        ("evaluation_interval: 15s", "evaluation_interval: 1s"),
        ("127.0.0.1:9101", &*address),
    ] {
        assert!(replaced.contains(is), "{is}: {config}");
        replaced = replaced.replace(is, becomes);
    }
    let directory = host.beside("prometheus");
    fs::create_dir(&directory).unwrap();
    fs::copy(resource("prometheus/rules.yml"), directory.join("rules.yml")).unwrap();
    let prometheus = Prometheus::start(&directory, &replaced);
    let collected = |least: u32| {
        let samples = format!(
            "min(count_over_time(kvm_user_exits_total{{reason=\"io_out\"}}[1m])) >= {least}"
        );
        wait_until("samples", || {
            prometheus
                .number(&samples)
                .filter(|_| prometheus.number("count(kvm_vm_info)") == Some(2.0))
        });
    };
    collected(2);
    // Somebody reads, so that there is something to see of that.
    let _ = host.flat();
    collected(6);

    // The variables have values.
    let dashboard = dashboard();
    let mut chosen = BTreeMap::from([("__rate_interval".to_string(), "1m".to_string())]);
    for variable in list(&dashboard["templating"]["list"]).iter().filter(|v| v["type"] == "query") {
        let asks = text(&variable["query"]["query"]);
        assert_eq!(text(&variable["definition"]), asks);
        let of = asks.strip_prefix("label_values(").and_then(|of| of.strip_suffix(')'));
        let (metric, label) = of.and_then(|of| of.rsplit_once(", ")).expect("values of a label");
        let metric = substituted(metric, &chosen);
        let found = prometheus.api("series", &[("match[]", &metric)]).unwrap();
        let values: BTreeSet<_> = list(&found).iter().map(|series| text(&series[label])).collect();
        assert!(!values.is_empty(), "{metric}");
        let chosen_values: Vec<_> = values.into_iter().map(str::to_string).collect();
        chosen.insert(text(&variable["name"]).to_string(), chosen_values.join("|"));
    }
    assert_eq!(chosen["instance"], address);
    assert_eq!(chosen["vm"], "test");

    let mut count = 0;
    for panel in list(&dashboard["panels"]).iter().filter(|panel| panel["type"] != "row") {
        for target in list(&panel["targets"]) {
            let query = substituted(text(&target["expr"]), &chosen);
            let what = format!("{}: {query}", panel["title"]);
            let samples = prometheus.query(&query);
            assert!(!samples.is_empty(), "{what}: no data");
            // A quantile of nothing is no number: of those by kind some happen, and some do not.
            let numbers = samples.iter().filter(|(_, number)| !number.is_nan()).count();
            let by_kind =
                query.contains("sum by (reason, le)") || query.contains("sum by (operation, le)");
            assert!(numbers == samples.len() || (by_kind && numbers > 0), "{what}: {samples:?}");
            assert!(
                samples.iter().all(|(_, number)| number.is_nan() || *number >= 0.0),
                "{what}: {samples:?}"
            );
            count += 1;
        }
    }
    assert!(count > 50, "{count}");
    // What guests do is seen, and what they do not is not.
    let seen = |query: &str| prometheus.number(query).unwrap();
    assert!(seen("sum(rate(kvm_blk_read_bytes_total[10s]))") > 0.0);
    assert_eq!(seen("sum(rate(kvm_blk_write_bytes_total[10s]))"), 0.0);

    // Each rule can be evaluated, is of metrics that there are, and has nothing to complain of here.
    let rules = wait_until("the rules", || {
        let groups = prometheus.api("rules", &[])?;
        let rules: Vec<Json> = list(&groups["groups"])
            .iter()
            .flat_map(|group| list(&group["rules"]).to_vec())
            .collect();
        rules.iter().all(|rule| rule["health"] != "unknown").then_some(rules)
    });
    assert!(rules.len() > 8, "{rules:?}");
    for rule in &rules {
        let (name, query) = (text(&rule["name"]), text(&rule["query"]));
        assert_eq!(rule["health"], "ok", "{name}: {}", rule["lastError"]);
        let metrics = metrics(query);
        assert!(!metrics.is_empty(), "{name}: {query}");
        for metric in metrics {
            assert!(
                prometheus.number(&format!("count({metric})")) > Some(0.0),
                "{name}: no {metric}"
            );
        }
        assert_ne!(rule["state"], "firing", "{name}: {}", rule["alerts"]);
    }
    for guest in guests {
        guest.kill_and_wait();
    }
}

/// A query with its variables replaced, as Grafana does.
fn substituted(query: &str, chosen: &BTreeMap<String, String>) -> String {
    let mut query = query.to_string();
    for (name, value) in chosen {
        query = query.replace(&format!("${name}"), value);
    }
    assert!(!query.contains('$'), "{query}");
    query
}

#[test]
fn promtool_has_nothing_against_the_configuration_and_the_rules_and_each_fires_when_it_should() {
    require("promtool", "--no-install-recommends prometheus").unwrap();
    let directory = resource("prometheus");
    let promtool = |args: &[&str]| {
        let output = Command::new("promtool").args(args).current_dir(&directory).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let said = text(output.stdout) + &text(output.stderr);
        assert!(output.status.success() && said.contains("SUCCESS"), "{args:?}: {said}");
        said
    };
    promtool(&["check", "config", "prometheus.yml"]);
    let said = promtool(&["check", "rules", "--lint=all", "--lint-fatal", "rules.yml"]);
    promtool(&["test", "rules", "rules-test.yml"]);
    // None is left out there.
    let read = |name: &str| fs::read_to_string(directory.join(name)).unwrap();
    let (rules, tests) = (read("rules.yml"), read("rules-test.yml"));
    let alerts: Vec<_> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(said.contains(&format!("{} rules found", alerts.len())), "{said}");
    for alert in alerts {
        let of = tests
            .split("- alertname: ")
            .filter_map(|test| test.strip_prefix(alert)?.strip_prefix('\n'));
        let fires = of
            .filter(|test| test.contains("exp_alerts:\n") && test.contains("exp_annotations:\n"))
            .count();
        assert!(fires >= 1, "{alert} is not seen to fire");
    }
}
