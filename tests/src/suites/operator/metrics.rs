//! Figures of a Molt that has worked, read as strictly as OpenMetrics is written.

use anyhow::ensure;
use serde_json::Value;

use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::molt::Setup;
use crate::harness::openmetrics;
use crate::harness::runtime::Kind;

/// The tests of this file.
pub(in crate::suites) const CASES: &[Case] = &[case("operator::metrics_are_open_metrics_to_the_letter", lint)];

fn lint(bed: &Bed) -> anyhow::Result<()> {
    let molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.start()?;
    molt.expect(0, &["update", &bed.small("v2")?])?;
    molt.expect(3, &["update", &bed.small("exits")?])?;
    let scrape = molt.ask("GET", "/metrics", &Value::Null)?;
    let media = scrape.header("content-type").unwrap_or_default().to_owned();
    ensure!(media == "application/openmetrics-text; version=1.0.0; charset=utf-8", "{media}");
    let text = scrape.text();
    let wrong = openmetrics::lint(&text);
    ensure!(wrong.is_empty(), "{}\n{text}", wrong.join("\n"));
    for name in [
        "molt_update_total{",
        "molt_downtime_seconds_bucket{",
        "molt_phase_seconds_sum{",
        "molt_fetch_bytes_total{",
        "molt_generation_info{",
        "molt_hold_active 0",
        "molt_degraded 0",
    ] {
        ensure!(text.lines().any(|line| line.starts_with(name)), "{name} is not in\n{text}");
    }
    molt.sound()
}
