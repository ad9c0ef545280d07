//! The policies that are shipped for interpreters, with those interpreters: Debian's `python3` and `nodejs` serve, keep
//! their state through an update, do what such daemons do, and reach nothing that their policy does not name.
//!
//! In: a server in each language, which tries things itself and says what became of it. Out: cases. Must not: run a server
//! that asks for less than such servers do.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde_json::json;

use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::interpreter;
use crate::harness::molt::Setup;
use crate::harness::runtime::Kind;

/// The cases.
pub(super) const CASES: &[Case] =
    &[case("language::python_serves_under_its_policy", python), case("language::node_serves_under_its_policy", node)];

const PYTHON: &str = include_str!("../../servers/server.py");
const NODE: &str = include_str!("../../servers/server.js");

fn python(bed: &Bed) -> anyhow::Result<()> {
    let program = fs::canonicalize("/usr/bin/python3").context("Debian's package python3")?;
    let name = program.file_name().and_then(|name| name.to_str()).context("a name")?.to_owned();
    let library = PathBuf::from("/usr/lib").join(&name);
    let policy = include_str!("../../../policies/python.yaml");
    serves(bed, "python", &program, &[library], PYTHON, policy)
}

fn node(bed: &Bed) -> anyhow::Result<()> {
    let program = fs::canonicalize("/usr/bin/node").context("Debian's package nodejs")?;
    // Debian keeps some of node's own modules there.
    let library = PathBuf::from("/usr/share/nodejs");
    let folders: Vec<PathBuf> = library.exists().then_some(library).into_iter().collect();
    serves(bed, "node", &program, &folders, NODE, include_str!("../../../policies/node.yaml"))
}

fn serves(
    bed: &Bed,
    name: &str,
    program: &Path,
    folders: &[PathBuf],
    script: &str,
    policy: &str,
) -> anyhow::Result<()> {
    let file = program.file_name().and_then(|name| name.to_str()).context("a name")?;
    let image = |version: &str| {
        bed.image(&format!("{name}:{version}"), || {
            let layer = interpreter::layer(program, file, folders)?;
            Ok(interpreter::image(layer, &format!("/usr/bin/{file}"), script, version))
        })
    };
    let setup = Setup::new(bed, Kind::Light, &image("v1")?)?.with("/policyFile", json!("policy.yaml"));
    fs::write(setup.config.join("policy.yaml"), policy)?;
    let setup = setup.workload_env("PYTHONDONTWRITEBYTECODE", "1").with("/health/startupDeadline", json!("20s"));
    let molt = setup.start()?;
    molt.serves("v1", 1)?;
    let tried = molt.get("/tried")?;
    for (what, errno) in tried.as_object().context("an object")? {
        // Named for what must become of it.
        let wanted = if what.starts_with("may ") { json!(0) } else { json!("EACCES") };
        ensure!(*errno == wanted, "{what}: {errno}, not {wanted}\n{tried:#}");
    }
    ensure!(tried.as_object().is_some_and(|tried| tried.len() >= 12), "{tried:#}");
    ensure!(molt.click()? == 1);
    molt.expect(0, &["update", &image("v2")?])?;
    molt.serves("v2", 2)?;
    ensure!(molt.get("/tried")? == tried, "the update changed what it may do: {:#}", molt.get("/tried")?);
    ensure!(molt.click()? == 2, "the counter goes on");
    molt.expect(0, &["rollback"])?;
    molt.serves("v1", 3)?;
    ensure!(molt.get("/tried")? == tried && molt.click()? == 3);
    molt.sound()
}
