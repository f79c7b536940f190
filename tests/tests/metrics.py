"""Reads OpenMetrics from standard input as strictly as the Prometheus project's own library does, and writes a line for each sample:
family, type, name, labels in order as `key=value` with commas between, and number, with tabs between."""

import sys

try:
    from prometheus_client.openmetrics.parser import text_string_to_metric_families
except ImportError:
    sys.exit("prometheus_client is missing: `apt-get install -y python3-prometheus-client`")

for family in text_string_to_metric_families(sys.stdin.read()):
    for sample in family.samples:
        labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
        print(family.name, family.type, sample.name, labels, repr(sample.value), sep="\t")
