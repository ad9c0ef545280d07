//! Builds `molt-shim` and hands its file to the compiler, so that `molt` is the one file that is put into a sandbox.
//!
//! In: the shim's sources. Out: `MOLT_SHIM`, the path of the ELF file, for `include_bytes!`. Must not: share the outer
//! build's target folder (its lock is held) or its flags (`clippy-driver`, coverage), which would change the shim. Builds
//! with other features share the shim's own target folder beside the outer one's, so that its dependencies are made once.

use std::{env, error::Error, path::Path, process::Command};

fn main() -> Result<(), Box<dyn Error>> {
    let manifest = env::var("CARGO_MANIFEST_DIR")?;
    let root = Path::new(&manifest).parent().ok_or("the workspace has no folder")?;
    let own = env::var("OUT_DIR")?;
    let shim = Path::new(&own).join("molt-shim");
    let target = env::var("TARGET")?;
    println!("cargo::rustc-env=MOLT_SHIM={}", shim.display());
    println!("cargo::rustc-env=MOLT_TARGET={target}");
    println!("cargo::rerun-if-env-changed=RUSTC_WORKSPACE_WRAPPER");
    // Fuzz targets start nothing, and lints read what is written, not what is made of it.
    let linted = env::var_os("RUSTC_WORKSPACE_WRAPPER").is_some_and(|with| Path::new(&with).ends_with("clippy-driver"));
    if linted || env::var_os("CARGO_FEATURE_FUZZING").is_some() {
        std::fs::write(&shim, [])?;
        return Ok(());
    }
    for watched in [
        "shim/src",
        "shim/Cargo.toml",
        "shim/confine/src",
        "shim/sys/src",
        "supervisor/core/src",
        "Cargo.toml",
        "Cargo.lock",
    ] {
        println!("cargo::rerun-if-changed={}", root.join(watched).display());
    }
    // OUT_DIR is …/release/build/molt-HASH/out.
    let out = Path::new(&own).ancestors().nth(3).ok_or("OUT_DIR is in no build's folder")?.join("shim");
    let mut cargo = Command::new(env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    cargo
        .current_dir(root)
        .args(["build", "--package", "molt-shim", "--profile", "shim", "--locked", "--quiet", "--target", &target])
        .arg("--target-dir")
        .arg(&out);
    if env::var_os("CARGO_FEATURE_PLANTED").is_some() {
        cargo.args(["--features", "planted"]);
    }
    for name in [
        "CARGO_BUILD_BUILD_DIR",
        "CARGO_BUILD_RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_TARGET_DIR",
        "CARGO_BUILD_TARGET",
        "LLVM_PROFILE_FILE",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_WRAPPER",
        "RUSTFLAGS",
    ] {
        cargo.env_remove(name);
    }
    let status = cargo.status()?;
    if !status.success() {
        return Err(format!("building molt-shim failed: {status}").into());
    }
    std::fs::copy(out.join(&target).join("shim").join("molt-shim"), &shim)?;
    Ok(())
}
