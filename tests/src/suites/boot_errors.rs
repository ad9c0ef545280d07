//! A start that cannot go on: each cause with its own exit status, words and mend, and nothing touched.

use std::fs::{self, File};
use std::path::PathBuf;

use anyhow::ensure;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::molt::{PROGRAM, SOON, SPEC, STORE, Setup, names};
use crate::harness::runtime::{Kind, Options, Sandbox};

/// The tests of this suite.
pub(super) const CASES: &[Case] = &[
    case("boot::not_as_pid_1", not_pid_1),
    case("boot::without_cap_sys_admin", no_capability),
    case("boot::with_the_store_on_the_containers_overlay", store_on_overlay),
    case("boot::with_a_read_only_store", read_only_store),
    case("boot::with_a_store_that_another_molt_holds", locked_store),
    case("boot::with_the_store_of_a_molt_that_runs_is_refused_and_that_one_goes_on", two_on_one_store),
    case("boot::with_the_store_in_the_state", store_in_state),
    case("boot::with_an_invalid_spec_says_all_that_is_wrong", invalid_spec),
    case("boot::with_an_invalid_policy_says_all_that_is_wrong", invalid_policy),
    case("boot::with_an_empty_policy_file", empty_policy),
    case("boot::with_nothing_to_run", nothing_to_run),
    case("boot::with_a_socket_that_cannot_be_made", no_socket),
];

/// Starts `program` and expects it to end with `code` and to say each of `words`.
fn refused(bed: &Bed, options: Options, code: i32, words: &[&str]) -> anyhow::Result<()> {
    let mut sandbox = Sandbox::start(bed, Kind::Light, options)?;
    let ended = sandbox.wait(SOON)?;
    let log = sandbox.logs();
    ensure!(ended == code, "exit status {ended}, not {code}:\n{log}");
    for word in words {
        ensure!(log.contains(word), "nothing of {word:?} in\n{log}");
    }
    ensure!(!log.contains("panicked"), "{log}");
    Ok(())
}

const RUN: [&str; 2] = ["--", "/app/molt-testd"];

fn init<'a>(flags: &[&'a str]) -> Vec<&'a str> {
    [PROGRAM, "init"].into_iter().chain(flags.iter().copied()).collect()
}

fn not_pid_1(bed: &Bed) -> anyhow::Result<()> {
    let molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.start()?;
    let output = molt.expect(125, &["init", "--store", "/tmp/other", "--", "/bin/true"])?;
    ensure!(output.stderr.contains("PID 1") && output.stderr.contains("ENTRYPOINT"), "{output:?}");
    ensure!(molt.sandbox.exec(&["test", "-e", "/tmp/other"])?.code != 0, "the store was made");
    molt.serves("v1", 1)
}

fn no_capability(bed: &Bed) -> anyhow::Result<()> {
    let program =
        [&["/bin/busybox", "start-stop-daemon", "-S", "-c", "app", "-x", PROGRAM, "--", "init"][..], &RUN].concat();
    let store = bed.volume("store")?;
    let options = Options::new(bed, &program)?.volume(&store, STORE);
    refused(bed, options, 125, &["CAP_SYS_ADMIN", "--cap-add SYS_ADMIN", "nothing was touched"])?;
    ensure!(names(&store)?.is_empty(), "the store was touched");
    Ok(())
}

fn store_on_overlay(bed: &Bed) -> anyhow::Result<()> {
    let program = init(&[&["--store", "/srv/store"][..], &RUN].concat());
    refused(bed, Options::new(bed, &program)?, 120, &["overlay", "mount a volume there", "nothing was touched"])?;
    // With an image, a store is needed whether it was named or not.
    let image = bed.small("v1")?;
    let program = init(&["--image", &image]);
    refused(bed, Options::new(bed, &program)?, 120, &["overlay", "an image needs a store"])
}

fn read_only_store(bed: &Bed) -> anyhow::Result<()> {
    let store = bed.volume("store")?;
    let program = init(&[&["--store", STORE][..], &RUN].concat());
    let options = Options::new(bed, &program)?.read_only(&store, STORE);
    refused(bed, options, 120, &["read-only", "mount the volume read-write"])?;
    ensure!(names(&store)?.is_empty());
    Ok(())
}

fn locked_store(bed: &Bed) -> anyhow::Result<()> {
    let store = bed.volume("store")?;
    let lock = File::create(store.join("lock"))?;
    lock.try_lock()?;
    let program = init(&[&["--store", STORE][..], &RUN].concat());
    let options = Options::new(bed, &program)?.volume(&store, STORE);
    refused(bed, options, 124, &["another molt holds its lock", "--store"])?;
    ensure!(names(&store)? == ["lock"], "{:?}", names(&store)?);
    Ok(())
}

fn two_on_one_store(bed: &Bed) -> anyhow::Result<()> {
    let molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.start()?;
    let listed = || anyhow::Ok((fs::read(molt.store.join("journal"))?, names(&molt.store)?));
    // Halted, it writes nothing itself meanwhile.
    let first = Pid::from_raw(molt.sandbox.pid1()?.cast_signed());
    kill(first, Signal::SIGSTOP)?;
    let before = listed()?;
    let image = bed.small("v2")?;
    let program = init(&["--store", STORE, "--image", &image]);
    let options = Options::new(bed, &program)?.volume(&molt.store, STORE);
    refused(bed, options, 124, &["another molt holds its lock", "stop the other molt", "nothing was touched"])?;
    ensure!(listed()? == before, "the store was touched");
    kill(first, Signal::SIGCONT)?;
    molt.serves("v1", 1)?;
    molt.expect(0, &["update", &bed.small("v2")?])?;
    molt.serves("v2", 2)?;
    molt.sound()
}

fn store_in_state(bed: &Bed) -> anyhow::Result<()> {
    let state = bed.volume("state")?;
    let program = init(&[&["--store", "/sandbox/state/molt"][..], &RUN].concat());
    let options = Options::new(bed, &program)?.volume(&state, "/sandbox/state");
    refused(bed, options, 122, &["/sandbox/state/molt", "give it a folder of its own"])?;
    ensure!(names(&state)?.is_empty());
    Ok(())
}

/// A sandbox with `spec` as its spec, and the store it must not touch.
fn with_spec(bed: &Bed, spec: &str) -> anyhow::Result<(Options, PathBuf)> {
    let (config, store) = (bed.scratch("config")?, bed.volume("store")?);
    fs::write(config.join("sandbox.yaml"), spec)?;
    let options = Options::new(bed, &init(&["--spec", SPEC]))?.volume(&store, STORE);
    Ok((options.read_only(&config, "/etc/molt"), store))
}

fn invalid_spec(bed: &Bed) -> anyhow::Result<()> {
    let head = "apiVersion: molt.dev/v1alpha1\nkind: Sandbox\nspec:\n";
    let text = format!("{head}  imgae: x\n  health: {{monitor: soon}}\n  update: {{keep: 0}}\n");
    let (options, store) = with_spec(bed, &text)?;
    let words = ["4:3: spec.imgae", "did you mean 'image'", "5:21: spec.health.monitor", "6:18: spec.update.keep"];
    refused(bed, options, 122, &words)?;
    ensure!(names(&store)?.is_empty());
    // Faults of meaning are looked for where the form is right.
    let text = format!(
        "{head}  image: registry.example.com/x:1\n  state: [relative, /a/../b]\n  registries: {{credentials: here}}\n"
    );
    let (options, store) = with_spec(bed, &text)?;
    refused(bed, options, 122, &["spec.state[0]", "spec.state[1]", "spec.registries.credentials"])?;
    ensure!(names(&store)?.is_empty());
    let (mut options, _) = with_spec(bed, &text)?;
    options.program = init(&["--spec", "/etc/molt/absent.yaml"]).into_iter().map(str::to_owned).collect();
    refused(bed, options, 122, &["/etc/molt/absent.yaml"])
}

fn invalid_policy(bed: &Bed) -> anyhow::Result<()> {
    let spec = json!({
        "apiVersion": "molt.dev/v1alpha1", "kind": "Sandbox", "metadata": {"name": "x"},
        "spec": {"image": bed.small("v1")?, "policy": {
            "version": 1,
            "filesystem_policy": {"read_only": ["relative"], "read_write": ["/a/../b"]},
            "process": {"run_as_user": "root"},
        }},
    });
    let (options, store) = with_spec(bed, &spec.to_string())?;
    let words = ["spec.policy.filesystem_policy.read_only[0]", "read_write[0]", "spec.policy.process.run_as_user"];
    refused(bed, options, 122, &words)?;
    ensure!(names(&store)?.is_empty());
    Ok(())
}

/// One that was cut short is not the default policy, by whichever way it is named.
fn empty_policy(bed: &Bed) -> anyhow::Result<()> {
    let image = bed.small("v1")?;
    let head = "apiVersion: molt.dev/v1alpha1\nkind: Sandbox\nspec:\n";
    for (text, flags) in [("", &["--policy", "/etc/molt/policy.yaml"][..]), ("  policyFile: policy.yaml\n", &[])] {
        let (config, store) = (bed.scratch("config")?, bed.volume("store")?);
        fs::write(config.join("sandbox.yaml"), format!("{head}  image: {image}\n{text}"))?;
        fs::write(config.join("policy.yaml"), "\n")?;
        let options = Options::new(bed, &init(&[&["--spec", SPEC], flags].concat()))?.volume(&store, STORE);
        refused(bed, options.read_only(&config, "/etc/molt"), 122, &["/etc/molt/policy.yaml is empty"])?;
        ensure!(names(&store)?.is_empty());
    }
    Ok(())
}

fn nothing_to_run(bed: &Bed) -> anyhow::Result<()> {
    refused(bed, Options::new(bed, &init(&[]))?, 122, &["nothing to run", "molt init -- CMD"])
}

fn no_socket(bed: &Bed) -> anyhow::Result<()> {
    let program = [&init(&["--socket", "/sys/molt/molt.sock"])[..], &RUN].concat();
    refused(bed, Options::new(bed, &program)?, 123, &["/sys/molt/molt.sock"])
}
