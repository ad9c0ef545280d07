//! Where images come from, when all is well: registries of every kind, layouts, packings, what is not fetched twice.

use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::json;

use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::faulty::Faulty;
use crate::harness::image::{Built, Format, Packing};
use crate::harness::molt::{SOON, Setup};
use crate::harness::registry::{PASSWORD, Registry};
use crate::harness::runtime::Kind;
use crate::harness::{images, process};

/// The tests of this suite.
pub(super) const CASES: &[Case] = &[
    case("registry::plain_http_where_the_spec_lists_it_as_insecure", plain),
    case("registry::tls_and_a_password_with_credentials_and_certificates", guarded),
    case("registry::tls_without_the_certificate_or_the_password_is_an_error", guarded_without),
    case("registry::bearer_tokens", bearer),
    case("registry::by_digest", by_digest),
    case("registry::layers_that_are_there_are_not_fetched_again", only_what_is_new),
    case("registry::a_mirror_is_asked_first", mirror),
    case("registry::every_packing_and_format_and_an_index", packings),
    case("registry::an_oci_layout_folder_and_a_tar_of_one", layouts),
];

fn plain(bed: &Bed) -> anyhow::Result<()> {
    let molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.start()?;
    molt.expect(0, &["update", &bed.small("v2")?])?;
    molt.serves("v2", 2)?;
    let setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?;
    let molt = setup.with("/registries/insecure", json!([])).launch()?;
    let events = |molt: &crate::harness::molt::Molt| Ok::<_, anyhow::Error>(molt.molt(&["events"])?.stdout);
    crate::harness::wait::until_ok("a warning about the first image", SOON, || {
        let seen = events(&molt)?;
        ensure!(seen.contains("failed to get the first image"), "{seen}");
        Ok(())
    })?;
    ensure!(molt.molt(&["probe", "live"])?.code == 0 && molt.molt(&["probe", "ready"])?.code == 1);
    Ok(())
}

/// Starts v1 out of `registry` and updates to v2, with what is needed to be let in.
fn through(bed: &Bed, registry: &Registry) -> anyhow::Result<()> {
    for version in ["v1", "v2"] {
        bed.small(version)?;
    }
    let setup = Setup::new(bed, Kind::Light, &registry.reference("small:v1"))?;
    registry.docker_config(&setup.config.join("auth.json"), PASSWORD)?;
    let mut registries = json!({"credentials": "/etc/molt/auth.json"});
    if let Some(certificates) = &registry.certificates {
        std::fs::copy(&certificates.authority, setup.config.join("ca.crt"))?;
        registries["certificates"] = json!("/etc/molt/ca.crt");
    } else {
        let tokens = registry.tokens.as_ref().context("a token server")?.address;
        registries["insecure"] = json!([registry.address.to_string(), tokens.to_string()]);
    }
    let molt = setup.with("/registries", registries).start()?;
    molt.click()?;
    molt.expect(0, &["update", &registry.reference("small:v2")])?;
    molt.serves("v2", 2)?;
    ensure!(molt.clicks()? == 1);
    for path in ["/etc/molt/auth.json", "/etc/molt"] {
        ensure!(molt.get(&format!("/read?path={path}"))?["errno"] == 2, "the workload sees {path}");
    }
    molt.sound()
}

fn guarded(bed: &Bed) -> anyhow::Result<()> {
    through(bed, &*bed.guarded()?)
}

fn bearer(bed: &Bed) -> anyhow::Result<()> {
    through(bed, &*bed.bearer()?)
}

fn guarded_without(bed: &Bed) -> anyhow::Result<()> {
    let (registry, image) = (bed.guarded()?, bed.small("v1")?);
    let v2 = registry.reference("small:v2");
    bed.small("v2")?;
    let molt = Setup::new(bed, Kind::Light, &image)?.start()?;
    let output = molt.expect(1, &["update", &v2])?;
    ensure!(output.stderr.contains("certificate"), "{output:?}");
    molt.serves("v1", 1)?;

    let setup = Setup::new(bed, Kind::Light, &image)?;
    let authority = &registry.certificates.as_ref().context("it speaks TLS")?.authority;
    std::fs::copy(authority, setup.config.join("ca.crt"))?;
    let molt = setup.with("/registries/certificates", json!("/etc/molt/ca.crt")).start()?;
    molt.expect(1, &["update", &v2])?;
    ensure!(molt.last()?["reason"] == "unauthorized", "{}", molt.last()?);
    molt.serves("v1", 1)?;
    ensure!(molt.json(&["bad", "list"])? == json!([]), "a registry fault never counts against an image");
    molt.sound()
}

fn by_digest(bed: &Bed) -> anyhow::Result<()> {
    let registry = bed.registry()?;
    bed.small("v2")?;
    let target = format!("docker://{}", registry.reference("small:v2"));
    let mut skopeo = registry.skopeo("inspect", "");
    let digest = process::run(skopeo.args(["--format", "{{.Digest}}", &target]), SOON)?.stdout.trim().to_owned();
    let molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.start()?;
    molt.expect(0, &["update", &registry.reference(&format!("small@{digest}"))])?;
    molt.serves("v2", 2)?;
    ensure!(molt.status()?["confirmed"]["digest"] == digest);
    // The tag leads to what runs already.
    molt.expect(0, &["update", &bed.small("v2")?])?;
    ensure!(molt.last()?["outcome"] == "noop");
    molt.sound()
}

fn only_what_is_new(bed: &Bed) -> anyhow::Result<()> {
    for version in ["v1", "v2"] {
        bed.small(version)?;
    }
    let proxy = Faulty::start(bed.registry()?.address)?;
    let setup = Setup::new(bed, Kind::Light, &proxy.reference("small:v1"))?;
    let molt = setup.with("/registries/insecure", json!([proxy.address.to_string()])).start()?;
    let blobs =
        || proxy.requests().iter().filter(|request| request.starts_with("GET") && request.contains("/blobs/")).count();
    ensure!(blobs() == 4, "a config and three layers: {:?}", proxy.requests());
    proxy.heal();
    molt.expect(0, &["update", &proxy.reference("small:v2")])?;
    ensure!(blobs() == 2, "a config and the last layer: {:?}", proxy.requests());
    proxy.heal();
    molt.expect(0, &["rollback"])?;
    ensure!(proxy.requests().is_empty(), "a rollback needs no network: {:?}", proxy.requests());
    molt.expect(0, &["update", &proxy.reference("small:v2")])?;
    ensure!(blobs() <= 1, "nothing but the config: {:?}", proxy.requests());
    ensure!(molt.stored("layers/sha256")?.len() == 4, "{:?}", molt.stored("layers/sha256")?);
    molt.sound()
}

fn mirror(bed: &Bed) -> anyhow::Result<()> {
    let proxy = Faulty::start(bed.registry()?.address)?;
    bed.small("v1")?;
    let setup = Setup::new(bed, Kind::Light, "registry.example.com/small:v1")?;
    let mirrors = json!({"registry.example.com": [proxy.address.to_string()]});
    let setup = setup.with("/registries/mirrors", mirrors);
    let molt = setup.with("/registries/insecure", json!([proxy.address.to_string()])).start()?;
    molt.serves("v1", 1)?;
    ensure!(proxy.requests().iter().any(|request| request.contains("/manifests/v1")), "{:?}", proxy.requests());
    ensure!(molt.status()?["confirmed"]["image"] == "registry.example.com/small:v1", "{}", molt.status()?);
    molt.sound()
}

fn packings(bed: &Bed) -> anyhow::Result<()> {
    let testd = bed.program("molt-testd")?;
    let molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.start()?;
    let all = [
        ("zstd", Packing::Zstd, Format::Oci),
        ("plain", Packing::Plain, Format::Oci),
        ("docker", Packing::Gzip, Format::Docker),
    ];
    for ((name, packing, format), version) in all.into_iter().zip(["v2", "v3", "v4"]) {
        // Every layer is another one than the gzip ones in the store, except that their contents are the same.
        let build = || Ok(images::small_as(version, &testd, packing, format)?.build());
        let image = bed.lying_image(&format!("packed-{name}:{version}"), build)?;
        molt.expect(0, &["update", &image]).with_context(|| name.to_owned())?;
        ensure!(molt.version()?.0 == version, "{name}");
    }
    let index = bed.image("several:v5", || {
        let (other, here) = (images::small("wrong-arch", &testd)?, images::small("v5", &testd)?);
        Ok(Built::index(Format::Oci, vec![other, here]))
    })?;
    molt.expect(0, &["update", &index])?;
    molt.serves("v5", 5)?;
    let list = bed.lying_image("several-docker:v6", || {
        let build = |version| images::small_as(version, &testd, Packing::Gzip, Format::Docker);
        Ok(Built::index(Format::Docker, vec![build("wrong-arch")?.build(), build("v6")?.build()]))
    })?;
    molt.expect(0, &["update", &list])?;
    molt.serves("v6", 6)?;
    molt.sound()
}

fn layouts(bed: &Bed) -> anyhow::Result<()> {
    let testd = bed.program("molt-testd")?;
    let mut setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?;
    let folder = bed.scratch("shipped")?;
    for version in ["v2", "v3"] {
        images::small(version, &testd)?.write_layout(&folder.join("layout"), version)?;
    }
    let one = bed.scratch("one")?;
    images::small("v4", &testd)?.write_layout(&one, "v4")?;
    let tar = folder.join("v4.tar");
    process::run(Command::new("tar").arg("-C").arg(&one).arg("-cf").arg(&tar).arg("."), SOON)?;
    setup.options = setup.options.read_only(&folder, "/srv/shipped");
    let molt = setup.start()?;
    molt.expect(0, &["update", "oci:/srv/shipped/layout:v2"])?;
    molt.serves("v2", 2)?;
    molt.expect(0, &["update", "oci:/srv/shipped/layout:v3"])?;
    molt.serves("v3", 3)?;
    let output = molt.molt(&["update", "oci:/srv/shipped/layout"])?;
    ensure!(output.code != 0, "a folder with two images and no tag is ambiguous: {output:?}");
    molt.expect(0, &["update", "oci:/srv/shipped/v4.tar"])?;
    molt.serves("v4", 4)?;
    molt.expect(0, &["rollback"])?;
    molt.serves("v3", 5)?;
    molt.sound()
}
