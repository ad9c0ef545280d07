//! Generation 0: the container's own root, without an image and even without a store.

use anyhow::ensure;
use serde_json::json;

use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::molt::{Molt, PROGRAM, SOON, Setup, names};
use crate::harness::runtime::{Kind, Options, Sandbox};
use crate::harness::{http, registry, wait};

/// The tests of this suite.
pub(super) const CASES: &[Case] = &[
    case("zero::runs_a_command_updates_to_an_image_and_goes_back", |bed| story(bed, Kind::Light)),
    case("zero::updates_to_an_image_and_goes_back_in_a_user_namespace", |bed| story(bed, Kind::LightUser)),
    case("zero::the_root_of_the_container_stays_as_it_is", untouched_root),
    case("zero::takes_the_place_of_tini", tini),
    case("zero::without_a_store_it_runs_and_an_update_is_refused", without_a_store),
];

fn story(bed: &Bed, kind: Kind) -> anyhow::Result<()> {
    // The image's user; the state is one and the same.
    let setup = Setup::own_root(bed, kind, &["/app/molt-testd"])?.with("/workload/user", json!("1000:1000"));
    let mut molt = setup.start()?;
    molt.serves("outer", 1)?;
    molt.click()?;
    let status = molt.status()?;
    ensure!(status["confirmed"]["generation"] == 0 && status["confirmed"]["image"].is_null(), "{status:#}");
    let refused = molt.expect(6, &["rollback"])?;
    ensure!(refused.stderr.contains("the container's own root"), "{refused:?}");
    let empty = molt.expect(6, &["update", "--policy", "/dev/null", &bed.small("v2")?])?;
    ensure!(empty.stderr.contains("the policy is empty"), "{empty:?}");
    molt.expect(6, &["update", "--dry-run", "--policy", "/dev/null", &bed.small("v2")?])?;
    molt.expect(0, &["update", &bed.small("v2")?])?;
    molt.serves("v2", 2)?;
    ensure!(molt.generation("previous")? == Some(0));
    molt.expect(0, &["rollback"])?;
    molt.serves("outer", 3)?;
    molt.expect(0, &["rollback", "--to", "1"])?;
    molt.serves("v2", 4)?;
    ensure!(molt.sandbox.kill()? == 137);
    molt.sandbox.restart()?;
    molt.settled()?;
    molt.serves("v2", 5)?;
    molt.expect(3, &["update", &bed.small("exits")?])?;
    molt.expect(0, &["rollback", "--to", "0"])?;
    ensure!(molt.version()?.0 == "outer" && molt.clicks()? == 1);
    molt.sound()
}

fn untouched_root(bed: &Bed) -> anyhow::Result<()> {
    let molt = Setup::own_root(bed, Kind::Light, &["/app/molt-testd"])?.with("/policy", json!("unconfined")).start()?;
    molt.expect(0, &["exec", "--", "sh", "-c", "echo mark > /var/tmp-mark || echo mark > /tmp/mark"])?;
    ensure!(molt.sandbox.exec(&["test", "-e", "/var/tmp-mark"])?.code != 0, "it wrote to the container's root");
    ensure!(molt.sandbox.exec(&["test", "-e", "/tmp/mark"])?.code != 0, "it wrote to the container's /tmp");
    molt.sound()
}

/// `molt init -- /app/molt-testd` and nothing else, with what every sandbox has.
fn bare(bed: &Bed, kind: Kind, port: u16) -> anyhow::Result<(Sandbox, std::path::PathBuf)> {
    let state = bed.volume("state")?;
    let options = Options::new(bed, &[PROGRAM, "init", "--", "/app/molt-testd"])?.env("TESTD_PORT", port);
    let options = options.env("GREETING", "hello").volume(&state, "/sandbox/state");
    Ok((Sandbox::start(bed, kind, options)?, state))
}

fn tini(bed: &Bed) -> anyhow::Result<()> {
    for kind in Kind::ALL {
        let port = registry::free_port()?;
        let (mut sandbox, state) = bare(bed, kind, port)?;
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        let first = wait::until_ok("the daemon to answer", SOON, || http::get(address, "/", SOON)?.json())?;
        ensure!(first["version"] == "outer", "{first}");
        let env = http::get(address, "/env", SOON)?.json()?;
        ensure!(env["MOLT_STORE"].is_null() && env["HOME"] != "/root", "{env}");
        ensure!(env["GREETING"] == "hello", "the environment of the container is not passed on: {env}");
        ensure!(sandbox.stop(SOON)? == 0, "{kind:?}");
        ensure!(names(&state)?.contains(&"clean-stop".to_owned()), "{kind:?}");
    }
    Ok(())
}

fn without_a_store(bed: &Bed) -> anyhow::Result<()> {
    let port = registry::free_port()?;
    let (sandbox, state) = bare(bed, Kind::Light, port)?;
    let unused = bed.scratch("unused")?;
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let molt = Molt { sandbox, address, state, store: unused.clone(), config: unused };
    molt.settled()?;
    wait::until_ok("the daemon to answer", SOON, || molt.serves("outer", 1))?;
    let status = molt.status()?;
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    let durable = conditions.iter().find(|condition| condition["type"] == "Durable");
    let durable = durable.ok_or_else(|| anyhow::anyhow!("no condition Durable: {status:#}"))?;
    ensure!(durable["status"] == "False", "{durable:#}");
    ensure!(durable["message"].as_str().is_some_and(|text| text.contains("mount a volume there")), "{durable:#}");
    let refused = molt.expect(6, &["update", &bed.small("v2")?])?;
    ensure!(refused.stderr.contains("no usable store"), "{refused:?}");
    molt.expect(6, &["rollback"])?;
    molt.serves("outer", 1)?;
    ensure!(molt.expect(0, &["exec", "--", "echo", "inside"])?.stdout == "inside\n");
    molt.sound()
}
