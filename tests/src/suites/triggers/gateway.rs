//! A gateway, by its operator's commands: the five minutes of `docs/GATEWAY.md`, and the section of the page.
//!
//! In: both pages. Out: cases. Must not: know another way in.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::PAGE;
use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::docs::{self, Reader, Section};
use crate::harness::gateway::lend;
use crate::harness::molt::SOON;
use crate::harness::process::Background;
use crate::harness::registry::free_port;
use crate::harness::wait;

/// Its section.
pub(super) const HEADING: &str = "Gateway";

/// The tests of this way in.
pub(super) const CASES: &[Case] = &[case("triggers::gateway_as_the_pages_say", as_the_pages_say)];

const POLICY: &str = "version: 1\nfilesystem_policy:\n  read_only: [/bin, /usr, /app, /etc, /lib]\n  \
                      read_write: [/sandbox/state, /tmp]\n";

fn as_the_pages_say(bed: &Bed) -> anyhow::Result<()> {
    let (minutes, section) = (Section::of("GATEWAY.md", "In five minutes")?, Section::of(PAGE, HEADING)?);
    let [init, operator] = <[String; 2]>::try_from(minutes.blocks("sh")?).map_err(|all| anyhow::anyhow!("{all:?}"))?;
    // Another sandbox than the one of the page has yet to be started: its credentials are made first.
    let first = docs::setup(bed)?.start()?;
    let reader = Reader::new(bed, &first)?;
    reader.types(&init)?;
    fs::write(reader.folder.join("policy.yaml"), POLICY)?;
    // The page's address is one that somebody else may have here.
    let address = format!("127.0.0.1:{}", free_port()?);
    let here = |text: &str| text.replace("127.0.0.1:8443", &address);
    let serve = minutes.blocks("console")?.concat();
    let words = here(serve.trim().strip_prefix("$ molt ").context("a command")?);
    let mut command = Command::new(bed.molt()?);
    command.args(words.split(' ')).current_dir(&reader.folder).stdin(Stdio::null()).stdout(Stdio::null());
    let _gateway = Background::spawn(&mut command)?;
    wait::until_ok("the gateway to listen", SOON, || {
        std::net::TcpStream::connect(&address)?;
        Ok(())
    })?;

    let mut spec: Value = json!({});
    for line in here(&minutes.blocks("yaml")?.concat()).lines() {
        if let Some((key, value)) = line.strip_prefix("    ").and_then(|line| line.split_once(": ")) {
            spec[key] = json!(value);
        }
    }
    let mut setup = docs::setup(bed)?.with("/gateway", spec);
    setup.spec["metadata"]["name"] = json!("whatsapp-daemon");
    lend(&reader.folder.join("gateway/sandboxes/whatsapp-daemon"), &setup.config.join("gateway"))?;
    let molt = setup.start()?;
    ensure!(molt.click()? == 1);
    let reader =
        reader.env("MOLT_GATEWAY", format!("https://{address}")).env("MOLT_GATEWAY_CONFIG", "gateway/operators/admin");
    wait::until_ok("the sandbox to call", SOON, || {
        let said = reader.types("molt get")?.stdout;
        ensure!(said.contains("whatsapp-daemon"), "{said}");
        Ok(())
    })?;
    let said = reader.types(&operator)?.stdout;
    ensure!(said.contains("confirmed: generation 2 runs registry.example.com/acme/daemon:1.5"), "{said}");
    ensure!(said.contains("confirmed: generation 1 runs"), "{said}");
    molt.serves("v1", 3)?;
    let said = reader.follows(&section)?;
    ensure!(said[0].stdout.contains("confirmed"), "{}", said[0].stdout);
    molt.serves("v2", 4)?;
    ensure!(molt.clicks()? == 1, "the state is lost");
    molt.sound()
}
