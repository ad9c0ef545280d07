//! Builds `molt-shim` and hands its file to the compiler, so that `molt` is the one file that is put into a sandbox.
//!
//! In: the shim's sources. Out: `MOLT_SHIM`, the path of the ELF file, for `include_bytes!`. Must not: share the outer
//! build's target folder (its lock is held) or its flags (`clippy-driver`, coverage), which would change the shim.

use std::{env, error::Error, path::Path, process::Command};

fn main() -> Result<(), Box<dyn Error>> {
    let manifest = env::var("CARGO_MANIFEST_DIR")?;
    let root = Path::new(&manifest).parent().ok_or("the workspace has no folder")?;
    let out = Path::new(&env::var("OUT_DIR")?).join("shim");
    let target = env::var("TARGET")?;
    if env::var_os("CARGO_FEATURE_FUZZING").is_some() {
        // Fuzz targets start nothing.
        std::fs::write(&out, [])?;
        println!("cargo::rustc-env=MOLT_SHIM={}", out.display());
        println!("cargo::rustc-env=MOLT_TARGET={target}");
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
    println!("cargo::rustc-env=MOLT_SHIM={}", out.join(&target).join("shim").join("molt-shim").display());
    println!("cargo::rustc-env=MOLT_TARGET={target}");
    Ok(())
}
