//! Registries that are not there, refuse, stumble or lie. None of it counts against an image.

use std::fs;
use std::io::ErrorKind;
use std::time::Duration;

use anyhow::{Context, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::{daemons, fails, last_layer, look, pull_fails, recipe, says, setup, tidy};
use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::faulty::{Fault, Faulty};
use crate::harness::molt::{Molt, SOON, Setup};
use crate::harness::registry::{PASSWORD, Registry, USER, free_port};
use crate::harness::wait;

/// The tests of this suite.
pub(in crate::suites) const CASES: &[Case] = &[
    case("bad::registry::an_unknown_host", unknown_host),
    case("bad::registry::a_name_that_leads_where_no_registry_is", misleading_names),
    case("bad::registry::a_host_where_nobody_listens", nobody_listens),
    case("bad::registry::a_password_is_wanted_and_none_is_there", no_password),
    case("bad::registry::a_wrong_password", wrong_password),
    case("bad::registry::a_wrong_password_for_the_token_server", wrong_password_for_a_token),
    case("bad::registry::no_such_tag_repository_or_digest", not_found),
    case("bad::registry::too_many_requests_until_the_attempts_run_out", |bed| always(bed, 429)),
    case("bad::registry::errors_of_the_server_until_the_attempts_run_out", |bed| always(bed, 500)),
    case("bad::registry::a_few_faults_are_overcome", overcome),
    case("bad::registry::a_blob_cut_short_again_and_again", cut_short),
    case("bad::registry::a_blob_that_never_ends_when_the_deadline_passes", stalled),
    case("bad::registry::a_blob_that_comes_byte_by_byte_when_the_deadline_passes", dripping),
    case("bad::registry::a_redirect_that_leads_to_itself", redirected),
    case("bad::registry::a_tag_that_moves_during_the_pull_changes_nothing", moved_tag),
    case("bad::registry::a_blob_that_is_shorter_than_the_manifest_says", shorter),
    case("bad::registry::a_blob_with_another_digest_is_not_held_against_the_image", wrong_digest),
    case("bad::registry::a_manifest_with_another_digest", wrong_manifest),
    case("bad::registry::a_page_in_place_of_a_manifest", wrong_type),
    case("bad::registry::plain_http_unless_the_spec_lists_the_host", plain_http),
    case("bad::registry::a_certificate_nobody_vouches_for", untrusted),
    case("bad::registry::the_workload_sees_nothing_of_the_registrys_password", secrets),
];

/// Molt, and a proxy with bad days in front of its registry.
fn behind_a_proxy(bed: &Bed) -> anyhow::Result<(Molt, Faulty)> {
    let registry = bed.registry()?.address;
    let proxy = Faulty::start(registry)?;
    let hosts = json!([registry.to_string(), proxy.address.to_string()]);
    Ok((setup(bed)?.with("/registries/insecure", hosts).start()?, proxy))
}

fn unknown_host(bed: &Bed) -> anyhow::Result<()> {
    let molt = setup(bed)?.start()?;
    let image = "registry.no-such-host.invalid/acme/daemon:1.5";
    let parts = [
        "failed to reach registry.no-such-host.invalid: ",
        "(check the name, DNS, and that the sandbox may connect to it)",
    ];
    pull_fails(&molt, 1, image, &parts).map(drop)
}

/// What a cloud tells its machines, and nobody, and everybody: refused by the address, whatever the name.
fn misleading_names(bed: &Bed) -> anyhow::Result<()> {
    let addresses = ["169.254.169.254", "::ffff:169.254.169.254", "fd00:ec2::254", "fe80::1", "0.0.0.0", "224.0.0.1"];
    let mut setup = setup(bed)?;
    for (number, address) in addresses.iter().enumerate() {
        setup.options.hosts.push_str(&format!("{address} registry-{number}.example\n"));
    }
    let molt = setup.start()?;
    for (number, address) in addresses.iter().enumerate() {
        let image = format!("registry-{number}.example/acme/daemon:1.5");
        pull_fails(&molt, 1, &image, &["the name leads only to addresses that no registry has"]).context(*address)?;
    }
    Ok(())
}

fn nobody_listens(bed: &Bed) -> anyhow::Result<()> {
    let molt = setup(bed)?.start()?;
    let image = format!("127.0.0.1:{}/acme/daemon:1.5", free_port()?);
    pull_fails(&molt, 1, &image, &["failed to reach 127.0.0.1:", "no connection", "Connection refused"]).map(drop)
}

/// Molt that trusts the authority of a guarded registry and, where there is one, has a password for it.
fn with_password<'a>(bed: &'a Bed, registry: &Registry, password: Option<&str>) -> anyhow::Result<Setup<'a>> {
    let mut setup = setup(bed)?;
    if let Some(certificates) = &registry.certificates {
        fs::copy(&certificates.authority, setup.config.join("ca.crt"))?;
        setup = setup.with("/registries/certificates", json!("/etc/molt/ca.crt"));
    } else {
        let tokens = registry.tokens.as_ref().context("a token server")?.address.to_string();
        let hosts = json!([bed.registry()?.address.to_string(), registry.address.to_string(), tokens]);
        setup = setup.with("/registries/insecure", hosts);
    }
    if let Some(password) = password {
        registry.docker_config(&setup.config.join("config.json"), password)?;
        setup = setup.with("/registries/credentials", json!("/etc/molt/config.json"));
    }
    Ok(setup)
}

fn no_password(bed: &Bed) -> anyhow::Result<()> {
    let registry = bed.guarded()?;
    bed.small("v2")?;
    let molt = with_password(bed, &registry, None)?.start()?;
    let parts = ["access denied (401)", "no credentials are set; point registries.credentials to a docker config.json"];
    pull_fails(&molt, 1, &registry.reference("small:v2"), &parts).map(drop)
}

fn wrong_password(bed: &Bed) -> anyhow::Result<()> {
    let registry = bed.guarded()?;
    bed.small("v2")?;
    let molt = with_password(bed, &registry, Some("wrong"))?.start()?;
    let refused = format!("the credentials for '{}' in /etc/molt/config.json were refused", registry.address);
    pull_fails(&molt, 1, &registry.reference("small:v2"), &["access denied (401)", &refused])?;
    // The file is read anew whenever it is asked for, so that a rotated secret needs no restart.
    registry.docker_config(&molt.config.join("config.json"), PASSWORD)?;
    molt.expect(0, &["update", &registry.reference("small:v2")])?;
    molt.serves("v2", 2)
}

fn wrong_password_for_a_token(bed: &Bed) -> anyhow::Result<()> {
    let registry = bed.bearer()?;
    bed.small("v2")?;
    let molt = with_password(bed, &registry, Some("wrong"))?.start()?;
    let parts = ["failed to get a token for small from ", "access denied (401)", "/etc/molt/config.json were refused"];
    pull_fails(&molt, 1, &registry.reference("small:v2"), &parts).map(drop)
}

fn not_found(bed: &Bed) -> anyhow::Result<()> {
    let molt = setup(bed)?.start()?;
    let registry = bed.registry()?;
    let digest = format!("sha256:{}", "0".repeat(64));
    for name in ["small:no-such-tag".to_owned(), "no/such/repository:1".to_owned(), format!("small@{digest}")] {
        let asked = name.rsplit([':']).next().context("a tag")?.to_owned();
        let parts = ["failed to find ", &asked, &registry.address.to_string(), "there is no such tag or digest"];
        pull_fails(&molt, 1, &registry.reference(&name), &parts)?;
    }
    Ok(())
}

fn always(bed: &Bed, status: u16) -> anyhow::Result<()> {
    let (molt, proxy) = behind_a_proxy(bed)?;
    bed.small("v2")?;
    proxy.rule("/manifests/", Fault::Status(status, ""), None);
    let answered = format!("it answered {status}; the registry is busy or broken, try again later");
    pull_fails(&molt, 1, &proxy.reference("small:v2"), &["failed to get small/manifests/v2 from ", &answered])?;
    let asked = proxy.requests().iter().filter(|request| request.contains("/manifests/")).count();
    ensure!(asked == 4, "asked {asked} times: {:?}", proxy.requests());
    proxy.heal();
    molt.expect(0, &["update", &proxy.reference("small:v2")])?;
    molt.serves("v2", 2)
}

fn overcome(bed: &Bed) -> anyhow::Result<()> {
    let (molt, proxy) = behind_a_proxy(bed)?;
    bed.small("v2")?;
    let layer = last_layer(bed, "v2")?;
    proxy.rule("/manifests/", Fault::Status(429, "Retry-After: 1\r\n"), 1);
    proxy.rule("/manifests/", Fault::Status(500, ""), 1);
    proxy.rule(&layer, Fault::Status(503, ""), 1);
    proxy.rule(&layer, Fault::Truncate(20), 1);
    proxy.rule(&layer, Fault::Close, 1);
    let before = look(&molt)?;
    let output = molt.expect(0, &["update", &proxy.reference("small:v2")])?;
    says(&output.stderr, &["warning: ", "it answered 503", "trying again in "])?;
    let asked = |part: &str| proxy.requests().iter().filter(|request| request.contains(part)).count();
    ensure!(asked("/manifests/") == 3 && asked(&layer) == 4, "{:?}", proxy.requests());
    ensure!(look(&molt)?.daemons != before.daemons);
    molt.serves("v2", 2)?;
    tidy(&molt)?;
    molt.sound()
}

fn cut_short(bed: &Bed) -> anyhow::Result<()> {
    let (molt, proxy) = behind_a_proxy(bed)?;
    bed.small("v2")?;
    let layer = last_layer(bed, "v2")?;
    proxy.rule(&layer, Fault::Truncate(0), None);
    let parts =
        [&format!("failed to get blobs/{layer} from "), "the connection broke", "warning: ", "trying again in "];
    pull_fails(&molt, 1, &proxy.reference("small:v2"), &parts)?;
    proxy.heal();
    molt.expect(0, &["update", &proxy.reference("small:v2")])?;
    molt.serves("v2", 2)
}

fn stalled(bed: &Bed) -> anyhow::Result<()> {
    late(bed, Fault::Stall(20))
}

/// No single wait is long, and the whole is.
fn dripping(bed: &Bed) -> anyhow::Result<()> {
    late(bed, Fault::Drip(20))
}

fn late(bed: &Bed, fault: Fault) -> anyhow::Result<()> {
    let registry = bed.registry()?.address;
    let proxy = Faulty::start(registry)?;
    let hosts = json!([registry.to_string(), proxy.address.to_string()]);
    let setup = setup(bed)?.with("/registries/insecure", hosts).with("/update/pullDeadline", json!("1s"));
    let molt = setup.start()?;
    bed.small("v2")?;
    proxy.rule(&last_layer(bed, "v2")?, fault, None);
    pull_fails(&molt, 1, &proxy.reference("small:v2"), &["after 1 s"])?;
    proxy.heal();
    molt.expect(0, &["update", &proxy.reference("small:v2")])?;
    molt.serves("v2", 2)
}

fn redirected(bed: &Bed) -> anyhow::Result<()> {
    let (molt, proxy) = behind_a_proxy(bed)?;
    bed.small("v2")?;
    let layer = last_layer(bed, "v2")?;
    proxy.rule(&layer, Fault::Status(307, "Location: ?again\r\n"), None);
    pull_fails(&molt, 1, &proxy.reference("small:v2"), &["more than 5 redirects"])?;
    let asked = proxy.requests().iter().filter(|request| request.contains(&layer)).count();
    ensure!(asked <= 4 * 6, "asked {asked} times");
    proxy.heal();
    molt.expect(0, &["update", &proxy.reference("small:v2")])?;
    molt.serves("v2", 2)
}

/// What the tag led to when it was asked is what is fetched and what is shown.
fn moved_tag(bed: &Bed) -> anyhow::Result<()> {
    let (molt, proxy) = behind_a_proxy(bed)?;
    let (registry, layout) = (bed.registry()?, bed.scratch("layout")?);
    let mut digests = Vec::new();
    for version in ["v2", "v3"] {
        let built = recipe(bed, version)?.build();
        built.write_layout(&layout, version)?;
        digests.push(built.digest());
    }
    registry.push_layout(&layout, "v2", "moving:tag")?;
    proxy.rule("GET /v2/moving/blobs/", Fault::Delay(Duration::from_secs(1)), None);
    molt.expect(0, &["update", "--no-wait", &proxy.reference("moving:tag")])?;
    wait::until("a blob to be asked for", SOON, || proxy.requests().iter().any(|request| request.contains("/blobs/")))?;
    registry.push_layout(&layout, "v3", "moving:tag")?;
    let status =
        molt.until("the update to end", |status| status["phase"] == "Idle" && status["confirmed"]["generation"] == 2)?;
    ensure!(status["confirmed"]["digest"] == digests[0].as_str(), "{status:#}");
    molt.serves("v2", 2)?;
    // And asked again, it leads elsewhere.
    molt.expect(0, &["update", &proxy.reference("moving:tag")])?;
    ensure!(molt.status()?["confirmed"]["digest"] == digests[1].as_str(), "another one than the tag's");
    molt.serves("v3", 3)
}

fn shorter(bed: &Bed) -> anyhow::Result<()> {
    let molt = setup(bed)?.start()?;
    let image = bed.lying_image("bad/shorter:1", || {
        let recipe = recipe(bed, "v4")?;
        Ok(recipe.build_bent(|manifest| {
            let size = manifest["layers"][2]["size"].as_u64().unwrap_or(0);
            manifest["layers"][2]["size"] = json!(size + 100);
        }))
    })?;
    let layer = last_layer(bed, "v4")?;
    let parts = [&format!("blobs/{layer} from "), "it ended after ", "it ends before the size its manifest gives"];
    pull_fails(&molt, 1, &image, &parts).map(drop)
}

fn wrong_digest(bed: &Bed) -> anyhow::Result<()> {
    let (molt, proxy) = behind_a_proxy(bed)?;
    let image = proxy.reference("small:v2");
    bed.small("v2")?;
    let layer = last_layer(bed, "v2")?;
    proxy.rule(&layer, Fault::Corrupt(60), None);
    let parts = [&format!("failed to verify blob {layer}: expected {layer}, got sha256:")];
    pull_fails(&molt, 1, &image, &parts.map(String::as_str))?;
    proxy.heal();
    molt.expect(0, &["update", &image])?;
    molt.serves("v2", 2)
}

fn wrong_manifest(bed: &Bed) -> anyhow::Result<()> {
    let (molt, proxy) = behind_a_proxy(bed)?;
    bed.small("v2")?;
    let pinned = recipe(bed, "v2")?.build().digest();
    proxy.rule("/manifests/", Fault::Corrupt(30), None);
    let image = proxy.reference(&format!("small@{pinned}"));
    let said = format!("failed to verify manifests/{pinned}: expected {pinned}, got sha256:");
    pull_fails(&molt, 1, &image, &[&said])?;
    proxy.heal();
    molt.expect(0, &["update", &image])?;
    molt.serves("v2", 2)
}

fn wrong_type(bed: &Bed) -> anyhow::Result<()> {
    let (molt, proxy) = behind_a_proxy(bed)?;
    bed.small("v2")?;
    proxy.rule("/manifests/", Fault::ContentType("text/html"), None);
    pull_fails(&molt, 1, &proxy.reference("small:v2"), &["failed to read ", "text/html"]).map(drop)
}

fn plain_http(bed: &Bed) -> anyhow::Result<()> {
    let molt = setup(bed)?.start()?;
    bed.small("v2")?;
    let proxy = Faulty::start(bed.registry()?.address)?;
    let parts = [&format!("failed to reach {}: ", proxy.address), "TLS failed", "registries.insecure"];
    pull_fails(&molt, 1, &proxy.reference("small:v2"), &parts)?;
    let asked = proxy.requests();
    ensure!(asked.iter().all(|request| !request.contains("/v2/")), "it asked in plain text: {asked:?}");
    Ok(())
}

fn untrusted(bed: &Bed) -> anyhow::Result<()> {
    let registry = bed.guarded()?;
    bed.small("v2")?;
    let setup = setup(bed)?;
    registry.docker_config(&setup.config.join("config.json"), PASSWORD)?;
    let molt = setup.with("/registries/credentials", json!("/etc/molt/config.json")).start()?;
    let parts = ["its certificate is not trusted; add its CA to registries.certificates"];
    pull_fails(&molt, 1, &registry.reference("small:v2"), &parts).map(drop)
}

/// Looks for the words in every file the workload may read, and in what `/proc` shows of every process it sees.
const SEARCH: &str = r#"
for top in app bin dev/shm etc home lib mnt opt root run sandbox sbin srv tmp usr var; do grep -rsl "$@" "/$top"; done
for process in /proc/[0-9]*; do
    for file in environ cmdline mountinfo; do grep -sl "$@" "$process/$file"; done
    for file in "$process"/fd/*; do [ -f "$file" ] && grep -sl "$@" "$file"; done
done
echo searched
"#;

fn secrets(bed: &Bed) -> anyhow::Result<()> {
    let registry = bed.guarded()?;
    bed.small("v2")?;
    let molt = with_password(bed, &registry, Some(PASSWORD))?.start()?;
    molt.expect(0, &["update", &registry.reference("small:v2")])?;
    molt.serves("v2", 2)?;
    let encoded = STANDARD.encode(format!("{USER}:{PASSWORD}"));
    // In brackets, so that the search does not find itself.
    let hidden = |word: &str| format!("[{}]{}", &word[..1], &word[1..]);
    let (plain, encoded) = (hidden(PASSWORD), hidden(&encoded));
    let words = ["exec", "--", "sh", "-c", SEARCH, "sh", "-e", &plain, "-e", &encoded];
    let found = molt.expect(0, &words)?.stdout;
    ensure!(found == "searched\n", "the password is in {found}");
    // The search finds what there is to find.
    fs::write(molt.state.join("planted"), PASSWORD)?;
    let found = molt.expect(0, &words)?.stdout;
    ensure!(found == "/sandbox/state/planted\nsearched\n", "{found}");
    for path in ["/etc/molt", "/var/lib/molt", "/run/molt/molt.sock"] {
        let errno = molt.get(&format!("/try?open={path}"))?["errno"].clone();
        ensure!(errno == 2 || errno == 13, "{path}: {errno}");
    }
    // Nor does it hold a descriptor that leads there: its own streams, its state, its listener.
    let (pid, _) = *daemons(&molt)?.first().context("a daemon")?;
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let link = match fs::read_link(entry?.path()) {
            Ok(link) => link.display().to_string(),
            // A connection that ended meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error.into()),
        };
        let own = ["/dev/null", "/sandbox/state/lock", "pipe:[", "socket:["];
        ensure!(own.iter().any(|start| link.starts_with(start)), "the workload holds {link}");
    }
    // Nor does anything that Molt says hold it.
    let log = molt.sandbox.logs() + &molt.expect(0, &["status", "-o", "json"])?.stdout;
    ensure!(!log.contains(PASSWORD) && !log.contains(&STANDARD.encode(format!("{USER}:{PASSWORD}"))), "{log}");
    fails(&molt, 1, &["update", &registry.reference("small:none")], &["failed to find "])?;
    molt.sound()
}
