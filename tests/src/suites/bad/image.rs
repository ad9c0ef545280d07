//! Images that lie, do not fit, or try to climb out.

use std::fs;

use anyhow::{Context, ensure};
use serde_json::json;

use super::{fails, look, pull_fails, pull_fails_but_for_one, recipe, says, setup, tidy};
use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::image::{Built, Format, Layer, Packing, digest};
use crate::harness::molt::Molt;
use crate::harness::{images, process};

/// The tests of this suite.
pub(in crate::suites) const CASES: &[Case] = &[
    case("bad::image::a_layer_that_is_not_what_its_diff_id_says", lying_diff_id),
    case("bad::image::another_architecture", wrong_architecture),
    case("bad::image::a_program_that_is_not_there", |bed| unusable(bed, "no-entrypoint-file", NO_FILE)),
    case("bad::image::a_program_that_is_not_executable", |bed| unusable(bed, "not-executable", NOT_EXECUTABLE)),
    case("bad::image::a_script_without_its_interpreter", |bed| unusable(bed, "bad-interpreter", NO_INTERPRETER)),
    case("bad::image::a_program_for_another_machine", other_machine),
    case("bad::image::a_program_without_its_elf_interpreter", no_elf_interpreter),
    case("bad::image::a_program_that_is_nowhere_in_path", nowhere_in_path),
    case("bad::image::neither_entrypoint_nor_command", no_command),
    case("bad::image::a_working_directory_that_is_not_there", no_working_directory),
    case("bad::image::a_user_it_does_not_have", unknown_user),
    case("bad::image::root_without_leave", root_without_leave),
    case("bad::image::a_user_who_cannot_write_the_state", cannot_write_state),
    case("bad::image::without_the_state_folder_it_is_made", no_state_folder),
    case("bad::image::the_state_folder_is_a_link_to_etc", state_is_a_link),
    case("bad::image::names_that_climb_out_are_refused", climbing_names),
    case("bad::image::links_lead_no_further_than_the_image", climbing_links),
    case("bad::image::a_device_node", device_node),
    case("bad::image::the_one_that_runs_is_nothing_to_do", the_same),
];

fn lying_diff_id(bed: &Bed) -> anyhow::Result<()> {
    let molt = setup(bed)?.start()?;
    let lie = digest(b"something else");
    let image = bed.lying_image("bad/diff-id:1", || {
        let recipe = recipe(bed, "v4")?;
        Ok(recipe.bend_config(|config| config["rootfs"]["diff_ids"][2] = json!(lie)).build())
    })?;
    let said = format!("failed to verify unpacked layer (diff_id) {lie}: expected {lie}, got sha256:");
    pull_fails(&molt, 1, &image, &[&said]).map(drop)
}

fn wrong_architecture(bed: &Bed) -> anyhow::Result<()> {
    let molt = setup(bed)?.start()?;
    let plain = bed.small("wrong-arch")?;
    let index = bed.image("bad/wrong-arch:index", || {
        let other = recipe(bed, "v4")?.bend_config(|config| config["architecture"] = json!("riscv64")).build();
        Ok(Built::index(Format::Oci, vec![images::small("wrong-arch", &bed.program("molt-testd")?)?, other]))
    })?;
    let said = format!("failed to find an image for linux/{} in ", crate::harness::image::architecture());
    pull_fails(&molt, 6, &plain, &[&said, "it has only linux/"])?;
    pull_fails(&molt, 6, &index, &[&said, "linux/riscv64"])?;
    let dry = molt.expect(6, &["update", &plain, "--dry-run"])?;
    says(&dry.stderr, &[&said])
}

const NO_FILE: &str = "/app/absent does not exist in the image";
const NOT_EXECUTABLE: &str = "/app/data is not executable for the workload's user";
const NO_INTERPRETER: &str = "/opt/absent/bin/sh, the interpreter of /app/start, does not exist in the image";

fn unusable(bed: &Bed, variant: &str, said: &str) -> anyhow::Result<()> {
    let molt = setup(bed)?.start()?;
    let image = bed.small(variant)?;
    // It never ran, and another spec or user may take it: nothing is held against it, however often it is tried.
    for _ in 0..2 {
        fails(&molt, 1, &["update", &image], &[said])?;
        ensure!(molt.status()?["bad"] == json!([]), "{}", molt.status()?["bad"]);
        tidy(&molt)?;
    }
    molt.expect(0, &["update", &bed.small("v2")?])?;
    molt.serves("v2", 2)
}

/// An image with one more file in `/app` that is its program.
fn program(bed: &Bed, name: &str, file: &str, bytes: &[u8]) -> anyhow::Result<String> {
    bed.image(name, || {
        let layer = Layer::new().dir("app", 0o755).file(&format!("app/{file}"), 0o755, bytes);
        let recipe = recipe(bed, "v4")?.layer(layer.pack(Packing::Gzip));
        Ok(recipe.set("Entrypoint", json!([format!("/app/{file}")])).build())
    })
}

fn other_machine(bed: &Bed) -> anyhow::Result<()> {
    let molt = setup(bed)?.start()?;
    let mut elf = fs::read(bed.program("molt-testd")?)?;
    // `e_machine` of elf(5): SPARC.
    elf[18..20].copy_from_slice(&[2, 0]);
    let image = program(bed, "bad/machine:1", "sparc", &elf)?;
    fails(&molt, 1, &["update", &image], &["/app/sparc is an ELF file for another machine than "])?;
    let image = program(bed, "bad/machine:2", "text", b"echo no first line\n")?;
    fails(&molt, 1, &["update", &image], &["/app/text is neither an ELF file nor a #! script"]).map(drop)
}

fn no_elf_interpreter(bed: &Bed) -> anyhow::Result<()> {
    let molt = setup(bed)?.start()?;
    let image = program(bed, "bad/dynamic:1", "dynamic", &fs::read("/bin/true")?)?;
    let said = ", the ELF interpreter of /app/dynamic, does not exist in the image";
    fails(&molt, 1, &["update", &image], &[said]).map(drop)
}

fn nowhere_in_path(bed: &Bed) -> anyhow::Result<()> {
    let molt = setup(bed)?.start()?;
    let image = bed.image("bad/nowhere:1", || {
        let recipe = recipe(bed, "v4")?.set("Env", json!(["PATH=/usr/bin:/opt/acme/bin"]));
        Ok(recipe.set("Entrypoint", json!(["acmed"])).build())
    })?;
    fails(&molt, 1, &["update", &image], &["acmed is in no folder of PATH=/usr/bin:/opt/acme/bin"]).map(drop)
}

fn no_command(bed: &Bed) -> anyhow::Result<()> {
    let molt = setup(bed)?.start()?;
    let image = bed.image("bad/no-command:1", || Ok(recipe(bed, "v4")?.set("Entrypoint", json!([])).build()))?;
    let said = "the image has neither Entrypoint nor Cmd, and the spec gives no workload.command";
    pull_fails(&molt, 1, &image, &[said]).map(drop)
}

fn no_working_directory(bed: &Bed) -> anyhow::Result<()> {
    let molt = setup(bed)?.start()?;
    let image = bed.image("bad/workdir:1", || Ok(recipe(bed, "v4")?.set("WorkingDir", json!("/opt/acme")).build()))?;
    fails(&molt, 1, &["update", &image], &["the working directory /opt/acme cannot be entered"]).map(drop)
}

fn cannot_write_state(bed: &Bed) -> anyhow::Result<()> {
    let setup = setup(bed)?;
    std::os::unix::fs::chown(&setup.state, Some(1000), Some(1000))?;
    fs::set_permissions(&setup.state, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let molt = setup.start()?;
    let image = bed.image("bad/other-user:1", || Ok(recipe(bed, "v4")?.set("User", json!("1234:1235")).build()))?;
    let parts = [
        "/sandbox/state belongs to 1000:1000 with mode 755 and cannot be written by 1234:1235",
        "`chown 1234:1235 /sandbox/state`, or in a pod `securityContext.fsGroup: 1235`",
    ];
    fails(&molt, 1, &["update", &image], &parts).map(drop)
}

fn unknown_user(bed: &Bed) -> anyhow::Result<()> {
    let molt = setup(bed)?.start()?;
    let parts = [
        "failed to resolve user nobody-here: the image's /etc/passwd has no such user",
        "give workload.user or the policy's run_as_user as a number",
    ];
    fails(&molt, 1, &["update", &bed.small("unknown-user")?], &parts)?;
    tidy(&molt)
}

fn root_without_leave(bed: &Bed) -> anyhow::Result<()> {
    let molt = setup(bed)?.start()?;
    let image = bed.image("bad/root:1", || Ok(recipe(bed, "v4")?.set("User", json!("root")).build()))?;
    let parts = ["the workload would run as root", "workload.allowRoot: true"];
    fails(&molt, 1, &["update", &image], &parts).map(drop)
}

fn no_state_folder(bed: &Bed) -> anyhow::Result<()> {
    let molt = setup(bed)?.start()?;
    let clicks = molt.click()?;
    molt.expect(0, &["update", &bed.small("no-state-dir")?])?;
    molt.serves("no-state-dir", 2)?;
    ensure!(molt.click()? == clicks + 1, "the state is another one");
    molt.sound()
}

fn state_is_a_link(bed: &Bed) -> anyhow::Result<()> {
    let molt = setup(bed)?.start()?;
    let etc = |molt: &Molt| anyhow::Ok(molt.sandbox.exec(&["sh", "-c", "ls -la /etc; cat /etc/passwd"])?.ok()?.stdout);
    let before = etc(&molt)?;
    let parts = [
        "failed to mount state at /sandbox/state",
        "'state' is a symbolic link in the image; state is mounted on folders only",
    ];
    fails(&molt, 1, &["update", &bed.small("state-symlink")?], &parts)?;
    ensure!(etc(&molt)? == before, "the supervisor's /etc has changed");
    ensure!(fs::symlink_metadata(molt.state.join("passwd")).is_err());
    tidy(&molt)
}

/// What a layer that climbs would leave behind.
const MARK: &str = "molt-climbed";

/// Fails if [`MARK`] is anywhere but in the root of an image, or something of the supervisor's own root is gone.
fn kept_in(molt: &Molt) -> anyhow::Result<()> {
    let find = format!(
        "busybox find / -xdev -name '{MARK}*'; busybox find /sandbox/state /run /dev -name '{MARK}*'; ls /etc/passwd /etc/molt/sandbox.yaml"
    );
    let found = molt.sandbox.exec(&["sh", "-c", &find])?.ok()?.stdout;
    ensure!(found == "/etc/molt/sandbox.yaml\n/etc/passwd\n", "in the supervisor's root: {found}");
    let mut host = process::output(
        std::process::Command::new("find").args([
            molt.store.as_os_str(),
            "-name".as_ref(),
            format!("{MARK}*").as_ref(),
        ]),
        crate::harness::molt::SOON,
    )?
    .ok()?
    .stdout;
    let inside = format!("{}/layers/sha256/", molt.store.display());
    host = host.lines().filter(|line| !line.starts_with(&inside)).collect();
    ensure!(host.is_empty(), "in the store: {host}");
    for folder in ["/", "/etc", "/tmp"] {
        ensure!(!std::path::Path::new(folder).join(MARK).exists(), "on the host, in {folder}");
    }
    Ok(())
}

fn with_layer(bed: &Bed, name: &str, layer: impl FnOnce(Layer) -> Layer) -> anyhow::Result<String> {
    bed.lying_image(name, || Ok(recipe(bed, "v4")?.layer(layer(Layer::new()).pack(Packing::Gzip)).build()))
}

fn climbing_names(bed: &Bed) -> anyhow::Result<()> {
    type Bend = fn(Layer) -> Layer;
    let molt = setup(bed)?.start()?;
    let layers: [(&str, Bend, &str); 5] = [
        ("up", |layer| layer.file("../molt-climbed", 0o644, b"x"), "'../molt-climbed'"),
        (
            "deep",
            |layer| layer.dir("app", 0o755).file("app/../../../molt-climbed", 0o644, b"x"),
            "'app/../../../molt-climbed'",
        ),
        ("absolute", |layer| layer.file("/../../molt-climbed", 0o644, b"x"), "'/../../molt-climbed'"),
        ("hardlink", |layer| layer.hardlink("app/molt-climbed", "../../../../etc/passwd"), "'../../../../etc/passwd'"),
        ("whiteout", |layer| layer.file("../../.wh.etc", 0o644, b""), "'../../.wh.etc'"),
    ];
    for (name, layer, shown) in layers {
        let image = with_layer(bed, &format!("bad/climbs-{name}:1"), layer)?;
        pull_fails_but_for_one(&molt, 1, &image, &["failed to unpack layer sha256:", shown, ".."]).context(name)?;
        kept_in(&molt).context(name)?;
    }
    Ok(())
}

fn climbing_links(bed: &Bed) -> anyhow::Result<()> {
    let molt = setup(bed)?.start()?;
    let passwd = molt.sandbox.exec(&["cat", "/etc/passwd"])?.ok()?.stdout;
    let image = with_layer(bed, "bad/climbs-inside:1", |layer| {
        layer
            .file("/molt-climbed-absolute", 0o644, b"x")
            .symlink("root-of-all", "/")
            .file("root-of-all/molt-climbed-link", 0o644, b"x")
            .symlink("up", "../../../../../../../..")
            .file("up/molt-climbed-up", 0o644, b"x")
            .symlink("etc-link", "/etc")
            .file("etc-link/passwd", 0o644, b"app:x:1000:1000::/:/bin/sh\n")
            .file("etc-link/molt-climbed-etc", 0o644, b"x")
            .symlink("proc-link", "/proc/1/root")
            .file("proc-link/molt-climbed-proc", 0o644, b"x")
            .hardlink("app/molt-climbed-hard", "/etc/passwd")
            .file("up/etc/.wh.group", 0o644, b"")
    })?;
    let before = look(&molt)?;
    let output = molt.molt(&["update", &image])?;
    kept_in(&molt)?;
    ensure!(molt.sandbox.exec(&["cat", "/etc/passwd"])?.ok()?.stdout == passwd, "the supervisor's passwd has changed");
    ensure!(molt.sandbox.exec(&["test", "-e", "/etc/group"])?.code == 0, "the supervisor's group is gone");
    let output = output.ok()?;
    ensure!(look(&molt)?.daemons != before.daemons, "{output:?}");
    let inside = "ls /molt-climbed-absolute /molt-climbed-link /molt-climbed-up /etc/molt-climbed-etc; cat /app/molt-climbed-hard; ls /etc/group";
    let seen = molt.molt(&["exec", "--", "sh", "-c", inside])?;
    ensure!(
        seen.stdout
            == "/etc/molt-climbed-etc\n/molt-climbed-absolute\n/molt-climbed-link\n/molt-climbed-up\n\
                app:x:1000:1000::/:/bin/sh\n",
        "{seen:?}"
    );
    molt.sound()
}

fn device_node(bed: &Bed) -> anyhow::Result<()> {
    let molt = setup(bed)?.start()?;
    let image = with_layer(bed, "bad/device:1", |layer| layer.dir("app", 0o755).device("app/mem", 1, 1))?;
    pull_fails_but_for_one(
        &molt,
        1,
        &image,
        &["failed to unpack layer sha256:", "'app/mem': device nodes are not taken"],
    )
}

fn the_same(bed: &Bed) -> anyhow::Result<()> {
    let molt = setup(bed)?.start()?;
    let image = bed.small("v1")?;
    let again = bed.image("again/small:latest", || images::small("v1", &bed.program("molt-testd")?))?;
    let pinned = format!("{}@{}", image, recipe(bed, "v1")?.build().digest());
    for name in [&image, &again, &pinned] {
        let before = look(&molt)?;
        let output = molt.expect(0, &["update", name])?;
        says(&output.stdout, &["nothing to do: "])?;
        ensure!(look(&molt)? == before, "it was started again");
        ensure!(molt.last()?["outcome"] == "noop");
    }
    let generations = molt.stored("generations")?;
    ensure!(generations == ["1"], "{generations:?}");
    Ok(())
}
