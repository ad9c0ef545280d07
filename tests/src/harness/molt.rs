//! Molt in an outer sandbox, with `molt-testd` or another daemon as its workload.
//!
//! In: a [`Setup`]: image, changes to the spec, volumes. Out: [`Molt`], whose client commands run inside the sandbox and
//! whose workload is asked over loopback. Must not: let a test end well after two workloads held the state at once.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::bed::Bed;
use super::process::Output;
use super::registry::free_port;
use super::runtime::{Kind, Options, Sandbox};
use super::{http, wait};

/// For what should be over in a moment; generous, because the machine may be busy.
pub const SOON: Duration = Duration::from_secs(20);
/// Where the supervisor is in the outer root.
pub const PROGRAM: &str = "/usr/local/bin/molt";
/// Where the spec lies in the sandbox.
pub const SPEC: &str = "/etc/molt/sandbox.yaml";
/// Where the store is unless told otherwise.
pub const STORE: &str = "/var/lib/molt";
/// The operator socket.
pub const SOCKET: &str = "/run/molt/molt.sock";
/// Where the state is.
pub const STATE: &str = "/sandbox/state";

/// What to start.
#[derive(Debug)]
pub struct Setup<'a> {
    bed: &'a Bed,
    /// Which runtime.
    pub kind: Kind,
    /// The sandbox spec, as a JSON document.
    pub spec: Value,
    /// Program, volumes and environment of the sandbox; the store, the state and the spec are added.
    pub options: Options,
    /// The state volume, on the host.
    pub state: PathBuf,
    /// The store volume, on the host.
    pub store: PathBuf,
    /// Folder of the spec, on the host; files beside the spec are put here.
    pub config: PathBuf,
    /// Port of the workload.
    pub port: u16,
}

impl<'a> Setup<'a> {
    /// Molt with `image`: asked for its health ten times a second, proven after 300 ms, two seconds to stop.
    pub fn new(bed: &'a Bed, kind: Kind, image: &str) -> anyhow::Result<Self> {
        let port = free_port()?;
        let spec = json!({
            "apiVersion": "molt.dev/v1alpha1",
            "kind": "Sandbox",
            "metadata": {"name": "tested"},
            "spec": {
                "image": image,
                "workload": {
                    "env": [{"name": "TESTD_PORT", "value": port.to_string()}],
                    "stopGracePeriod": "2s",
                },
                "health": {
                    "readiness": {"httpGet": {"path": "/healthz", "port": port}, "period": "100ms", "timeout": "1s"},
                    "monitor": "300ms",
                    "startupDeadline": "3s",
                },
                "update": {"reserve": "1MiB"},
                "registries": {"insecure": [bed.registry()?.address.to_string()]},
            },
        });
        let config = bed.scratch("config")?;
        let (state, store) = (bed.volume("state")?, bed.scratch("store")?);
        let options = Options::new(bed, &[PROGRAM, "init", "--spec", SPEC])?;
        Ok(Self { bed, kind, spec, options, state, store, config, port })
    }

    /// The spec without an image: generation 0 runs `command`.
    pub fn own_root(bed: &'a Bed, kind: Kind, command: &[&str]) -> anyhow::Result<Self> {
        let mut setup = Self::new(bed, kind, "")?;
        setup.options.program = vec![PROGRAM.to_owned(), "init".to_owned(), "--spec".to_owned(), SPEC.to_owned()];
        if let Some(spec) = setup.spec["spec"].as_object_mut() {
            spec.remove("image");
        }
        setup.options.program.push("--".to_owned());
        setup.options.program.extend(command.iter().map(|&word| word.to_owned()));
        Ok(setup)
    }

    /// Sets a field of the spec: `/health/monitor`.
    #[must_use]
    pub fn with(mut self, pointer: &str, value: Value) -> Self {
        let mut at = &mut self.spec["spec"];
        for key in pointer.trim_start_matches('/').split('/') {
            at = &mut at[key];
        }
        *at = value;
        self
    }

    /// Adds a variable of the workload.
    #[must_use]
    pub fn workload_env(mut self, name: &str, value: &str) -> Self {
        let env = self.spec["spec"]["workload"]["env"].as_array_mut().expect("made by `new`");
        env.push(json!({"name": name, "value": value}));
        self
    }

    /// Sets a variable of the sandbox.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.options = self.options.env(key, value);
        self
    }

    /// Starts it and returns at once.
    pub fn launch(self) -> anyhow::Result<Molt> {
        let Self { bed, kind, spec, options, state, store, config, port } = self;
        fs::write(config.join("sandbox.yaml"), serde_json::to_string_pretty(&spec)?)?;
        // Before the others, which may lie in them.
        let mut options = options;
        let others = std::mem::take(&mut options.volumes);
        let mut options = options.volume(&state, STATE).volume(&store, STORE).read_only(&config, "/etc/molt");
        options.volumes.extend(others);
        let sandbox = Sandbox::start(bed, kind, options)?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        Ok(Molt { sandbox, address, state, store, config })
    }

    /// Starts it and waits until the workload is ready and nothing is under way.
    pub fn start(self) -> anyhow::Result<Molt> {
        let molt = self.launch()?;
        molt.settled().with_context(|| format!("it said:\n{}", molt.sandbox.logs()))?;
        Ok(molt)
    }
}

/// A sandbox in which Molt is PID 1.
#[derive(Debug)]
pub struct Molt {
    /// The sandbox.
    pub sandbox: Sandbox,
    /// Where the workload listens.
    pub address: SocketAddr,
    /// The state volume, on the host.
    pub state: PathBuf,
    /// The store volume, on the host.
    pub store: PathBuf,
    /// Folder of the spec, on the host.
    pub config: PathBuf,
}

impl Molt {
    /// `molt WORDS`, inside.
    pub fn molt(&self, words: &[&str]) -> anyhow::Result<Output> {
        let all: Vec<&str> = [PROGRAM].iter().chain(words).copied().collect();
        self.sandbox.exec_within(&all, Duration::from_mins(1)).with_context(|| format!("molt {}", words.join(" ")))
    }

    /// `molt WORDS`, which must end with `code`.
    pub fn expect(&self, code: i32, words: &[&str]) -> anyhow::Result<Output> {
        self.molt(words)?.expect_code(code).with_context(|| format!("molt {}", words.join(" ")))
    }

    /// `molt WORDS -o json`.
    pub fn json(&self, words: &[&str]) -> anyhow::Result<Value> {
        let all: Vec<&str> = words.iter().chain(&["-o", "json"]).copied().collect();
        self.expect(0, &all)?.json()
    }

    /// `status` of the status document.
    pub fn status(&self) -> anyhow::Result<Value> {
        Ok(self.json(&["status"])?["status"].take())
    }

    /// Waits until the status is as wished.
    pub fn until(&self, what: &str, mut wished: impl FnMut(&Value) -> bool) -> anyhow::Result<Value> {
        wait::until_ok(what, SOON, || {
            let status = self.status()?;
            ensure!(wished(&status), "{status:#}");
            Ok(status)
        })
    }

    /// Waits until the workload is ready and nothing is under way.
    pub fn settled(&self) -> anyhow::Result<Value> {
        self.until("the workload to be ready", |status| {
            status["phase"] == "Idle" && status["workload"]["ready"] == true
        })
    }

    /// One request to the operator socket, from outside: no process is started in the sandbox for it.
    pub fn ask(&self, method: &str, path: &str, body: &Value) -> anyhow::Result<http::Response> {
        self.ask_with(method, path, &[], body)
    }

    /// The same with further headers.
    pub fn ask_with(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> anyhow::Result<http::Response> {
        let socket = self.socket()?;
        let body = if body.is_null() { Vec::new() } else { serde_json::to_vec(body)? };
        http::operator_with(&socket, method, path, headers, &body, SOON)
            .with_context(|| format!("{method} {path} at {}", socket.display()))
    }

    /// The operator socket, from outside.
    pub fn socket(&self) -> anyhow::Result<PathBuf> {
        Ok(PathBuf::from(format!("/proc/{}/root{SOCKET}", self.sandbox.pid1()?)))
    }

    /// Waits until an update has ended; its record, by the operator socket.
    pub fn ended(&self, id: &str) -> anyhow::Result<Value> {
        wait::until_ok(&format!("{id} to end"), SOON, || {
            let record = self.operator("GET", &format!("/v1/updates/{id}"), &Value::Null)?;
            ensure!(!record["ended"].is_null(), "{record:#}");
            Ok(record)
        })
    }

    /// As [`Molt::ask`], which must go well.
    pub fn operator(&self, method: &str, path: &str, body: &Value) -> anyhow::Result<Value> {
        let answer = self.ask(method, path, body)?;
        ensure!((200..300).contains(&answer.status), "{method} {path}: {} {}", answer.status, answer.text());
        answer.json()
    }

    /// `status` of the status document, by the operator socket.
    pub fn told(&self) -> anyhow::Result<Value> {
        Ok(self.operator("GET", "/v1/status", &Value::Null)?["status"].take())
    }

    /// Asks for an update to `image`, whether it failed before or not, and waits until it has ended and nothing is
    /// under way; its record.
    pub fn updated(&self, image: &str) -> anyhow::Result<Value> {
        let accepted = self.operator("POST", "/v1/updates", &json!({"image": image, "force": true}))?;
        let path = format!("/v1/updates/{}", accepted["id"].as_str().context("an id")?);
        wait::until_ok("the update to end", SOON, || {
            let record = self.operator("GET", &path, &Value::Null)?;
            ensure!(!record["outcome"].is_null(), "{record:#}");
            let status = self.told()?;
            ensure!(status["phase"] == "Idle" && status["workload"]["ready"] == true, "{status:#}");
            Ok(record)
        })
    }

    /// What the workload answers.
    pub fn get(&self, path: &str) -> anyhow::Result<Value> {
        http::get(self.address, path, SOON)?.json().with_context(|| format!("asking for {path}"))
    }

    /// The version that answers, and how often the daemon has been started in all.
    pub fn version(&self) -> anyhow::Result<(String, u64)> {
        let answer = self.get("/")?;
        let version = answer["version"].as_str().context("a version")?;
        Ok((version.to_owned(), answer["starts"].as_u64().context("starts")?))
    }

    /// An error unless `version` answers, and was the `starts`th to start.
    pub fn serves(&self, version: &str, starts: u64) -> anyhow::Result<()> {
        let (found, number) = self.version()?;
        ensure!(found == version && number == starts, "{found} answers, start {number}; not {version}, start {starts}");
        Ok(())
    }

    /// Counts one up in the state; what it is then.
    pub fn click(&self) -> anyhow::Result<u64> {
        self.get("/incr")?.as_u64().context("a number")
    }

    /// How often the daemon has counted.
    pub fn clicks(&self) -> anyhow::Result<u64> {
        self.get("/")?["clicks"].as_u64().context("clicks")
    }

    /// Number of a generation of the status: `confirmed`, `previous`, `trial`.
    pub fn generation(&self, role: &str) -> anyhow::Result<Option<u64>> {
        Ok(self.status()?[role]["generation"].as_u64())
    }

    /// `lastUpdate` of the status.
    pub fn last(&self) -> anyhow::Result<Value> {
        Ok(self.status()?["lastUpdate"].take())
    }

    /// A file of the state.
    pub fn state_file(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.state.join(name)).ok()
    }

    /// A file of a generation's upper folder.
    pub fn upper(&self, generation: u64, path: &str) -> PathBuf {
        self.store.join(format!("generations/{generation}/upper")).join(path.trim_start_matches('/'))
    }

    /// Names in a folder of the store, in order.
    pub fn stored(&self, folder: &str) -> anyhow::Result<Vec<String>> {
        names(&self.store.join(folder))
    }

    /// PID 1 and everything that descends from it, as this program sees them: `(pid, name)`.
    pub fn family(&self) -> anyhow::Result<Vec<(u32, String)>> {
        let stat = |pid: u32| -> Option<(u32, String)> {
            let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let (head, tail) = text.rsplit_once(')')?;
            let parent = tail.split_whitespace().nth(1)?.parse().ok()?;
            Some((parent, head.split_once('(')?.1.to_owned()))
        };
        let all = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        let table: BTreeMap<u32, (u32, String)> = all.filter_map(|pid| Some((pid, stat(pid)?))).collect();
        let first = self.sandbox.pid1()?;
        let descends = |pid: u32| {
            std::iter::successors(Some(pid), |pid| table.get(pid).map(|(parent, _)| *parent)).any(|pid| pid == first)
        };
        Ok(table.iter().filter(|(pid, _)| descends(**pid)).map(|(pid, (_, name))| (*pid, name.clone())).collect())
    }

    /// An error if two workloads ever held the state at once, or the supervisor broke an own rule.
    pub fn sound(&self) -> anyhow::Result<()> {
        ensure!(!self.state.join("overlap").exists(), "two workloads held the state at once");
        let log = self.sandbox.logs();
        ensure!(!log.contains("panicked at"), "something panicked:\n{log}");
        Ok(())
    }
}

/// Names in a folder, in order.
pub fn names(folder: &Path) -> anyhow::Result<Vec<String>> {
    let entries = fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?;
    let mut names = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<anyhow::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}
