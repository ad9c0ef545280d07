//! The life of a workload: updates, ways back, and never two at once. What those suites share is here.

pub(super) mod exclusive;
pub(super) mod rollback;
pub(super) mod update;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::harness::bed::Bed;
use crate::harness::image::{Format, Layer, Packing};
use crate::harness::images;
use crate::harness::molt::{Molt, Setup};
use crate::harness::runtime::Kind;

fn number(value: &Value) -> anyhow::Result<u64> {
    value.as_u64().with_context(|| format!("a number, not {value}"))
}

fn v1(bed: &Bed) -> anyhow::Result<Molt> {
    Setup::new(bed, Kind::Light, &bed.small("v1")?)?.start()
}

/// `small:VERSION` with a folder `/data` that belongs to the workload.
fn with_data(bed: &Bed, version: &str) -> anyhow::Result<String> {
    bed.image(&format!("data:{version}"), || {
        let folder = Layer::new().owner(1000, 1000).dir("data", 0o755).pack(Packing::Gzip);
        let testd = bed.program("molt-testd")?;
        Ok(images::small_as(version, &testd, Packing::Gzip, Format::Oci)?.layer(folder).build())
    })
}

fn data_policy() -> Value {
    json!({
        "version": 1,
        "filesystem_policy": {
            "include_workdir": false,
            "read_only": ["/bin", "/app", "/etc", "/proc"],
            "read_write": ["/sandbox/state", "/tmp", "/data"],
        },
    })
}

fn write_data(molt: &Molt) -> anyhow::Result<()> {
    molt.expect(0, &["exec", "--", "sh", "-c", "echo mark > /data/mark"])?;
    ensure!(molt.get("/read?path=/data/mark")? == "mark\n");
    Ok(())
}
