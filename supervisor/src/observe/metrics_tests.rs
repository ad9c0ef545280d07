//! The text of a scrape, from events that were made up.

use std::time::Duration;

use molt_core::{
    code::Code,
    wire::{Event, Outcome, PhaseName, What},
};

use super::Meter;
use crate::{api::fake, command::View, timer::Instant};

fn event(what: What) -> Event {
    Event { seq: 1, time: String::new(), update: None, what }
}

fn view() -> View {
    View {
        document: fake::document(),
        generations: vec![fake::generation(1, "1.4")],
        updates: Vec::new(),
        revision: String::new(),
        acted: None,
    }
}

fn phase(phase: PhaseName) -> Event {
    event(What::Phase { phase, message: String::new() })
}

fn layer(state: &str, total: u64) -> Event {
    let (layer, layers, digest, done) = (0, 1, fake::digest(1), total);
    event(What::Progress { layer, layers, digest, done, total, state: state.to_owned() })
}

#[test]
fn events_are_counted_once_and_in_their_units() {
    let (mut meter, start) = (Meter::new(), Instant::now());
    meter.see(&phase(PhaseName::Fetching), start);
    for (state, total) in [("fetching", 50), ("done", 1000), ("present", 7), ("present", 7)] {
        meter.see(&layer(state, total), start);
    }
    meter.see(&phase(PhaseName::Idle), start + Duration::from_millis(1500));
    let mut result = fake::record(7, "localhost/app:2".parse().ok());
    (result.outcome, result.reason) = (Some(Outcome::RolledBack), Some(Code::Unhealthy));
    (result.downtime_us, result.unready_us) = (Some(330), Some(2_000_000));
    meter.see(&event(What::Outcome { result: Box::new(result) }), start);
    let text = meter.text(&view());
    for line in [
        r#"molt_update_total{kind="update",result="rolledBack",reason="unhealthy"} 1"#,
        r#"molt_downtime_seconds_sum{cause="update"} 0.00033"#,
        r#"molt_downtime_seconds_bucket{le="0.0002",cause="update"} 0"#,
        r#"molt_downtime_seconds_bucket{le="0.0004",cause="update"} 1"#,
        r#"molt_unready_seconds_sum{cause="update"} 2.0"#,
        r#"molt_phase_seconds_sum{phase="Fetching"} 1.5"#,
        r#"molt_fetch_bytes_total{source="registry"} 1000"#,
        r#"molt_fetch_bytes_total{source="store"} 14"#,
        "molt_workload_exits_total 0",
        "molt_log_lines_lost_total 0",
        "molt_workload_ready 1",
        "molt_hold_active 0",
        "molt_degraded 0",
        "molt_generations 1",
    ] {
        assert!(text.lines().any(|one| one == line), "{line} is not in\n{text}");
    }
    // A phase that has not ended has no duration yet.
    assert!(!text.contains(r#"phase="Idle""#), "{text}");
}

#[test]
fn the_text_is_open_metrics() {
    let mut meter = Meter::new();
    meter.see(&event(What::WorkloadExited { generation: molt_core::ids::Generation(1), status: 1 }), Instant::now());
    let text = meter.text(&view());
    assert!(text.ends_with("# EOF\n"), "{text}");
    let mut family = "";
    for line in text.lines().filter(|line| *line != "# EOF") {
        if let Some(rest) = line.strip_prefix("# ") {
            let mut words = rest.split(' ');
            let keyword = words.next().unwrap();
            assert!(["HELP", "TYPE", "UNIT"].contains(&keyword), "{line}");
            family = words.next().unwrap();
            assert!(family.starts_with("molt_"), "{line}");
        } else {
            assert!(line.starts_with(family), "{line} is not of {family}");
            let value = line.rsplit(' ').next().unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }
    assert!(text.contains("molt_workload_exits_total 1\n"), "{text}");
    assert!(text.contains("molt_generation_info{generation=\"1\",digest=\"sha256:0101"), "{text}");
}
