//! Rules that no single field can see, and rules on the text of paths, names and hosts.
//!
//! In: a spec and the places of its fields. Out: every fault. Must not: look at the file system.

use super::{
    Action, Confirm, Gateway, Probe, Spec,
    document::Places,
    shape::{field, item},
    violation::Violations,
};
use crate::ids::ImageRef;

/// Why `path` is not an absolute, normalised path; none where it is one.
pub fn path_fault(path: &str) -> Option<String> {
    if !path.starts_with('/') {
        return Some("must be an absolute path".to_owned());
    }
    if path.len() > 4095 {
        return Some("is longer than 4095 bytes".to_owned());
    }
    if path.chars().any(char::is_control) {
        return Some("must not hold control characters".to_owned());
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        return Some("must not hold '..'".to_owned());
    }
    let normal = format!("/{}", parts.join("/"));
    (normal != path).then(|| format!("must be written as '{normal}'"))
}

/// Whether `path` is `folder` or below it.
fn within(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || folder == "/")
}

/// Folders that every generation has of its own.
const OWN: [&str; 3] = ["/proc", "/sys", "/dev"];

const HOST_WANTED: &str = "must be a registry host, as in registry.example.com or localhost:5000";

/// Longest name that a gateway takes: what follows it in a certificate must fit into the 253 of a DNS name, too.
const CERTIFIED: usize = 200;
/// Longest label of a DNS name (RFC 1035).
const CERTIFIED_LABEL: usize = 63;

/// `sun_path` holds 108 bytes, the last of them zero.
const SOCKET_BYTES: usize = 107;

pub(super) fn all(spec: &Spec, places: &Places) -> Violations {
    let mut found = Found { places, list: Violations::default() };
    found.name(spec);
    if spec.policy.is_some() && spec.policy_file.is_some() {
        found.add("spec.policyFile", "policy and policyFile exclude each other");
    }
    found.state(spec);
    found.mounts(spec);
    found.workload(spec);
    found.health(spec);
    for (name, hook) in spec.hooks.each() {
        let Some(hook) = hook else { continue };
        let path = field("spec.hooks", name);
        found.command(&format!("{path}.exec.command"), &hook.exec.command);
        if hook.timeout.is_zero() {
            found.add(&format!("{path}.timeout"), "must be more than 0s");
        }
    }
    found.update(spec);
    found.registries(spec);
    for (at, message) in super::orders::faults(&spec.orders) {
        found.add(&at, message);
    }
    found.own_files(spec);
    if let Some(update) = spec.api.workload.as_ref().and_then(|own| own.update.as_ref()) {
        if update.images.is_empty() {
            found.add("spec.api.workload.update.images", "must name an image");
        }
        for (index, pattern) in update.images.iter().enumerate() {
            if !pattern.contains('/') || pattern.len() > 1024 {
                let at = item("spec.api.workload.update.images", index);
                found.add(&at, "must be a reference with its registry, as in registry.example.com/acme/daemon:*");
            }
        }
    }
    found.list
}

struct Found<'a> {
    places: &'a Places,
    list: Violations,
}

impl Found<'_> {
    fn add(&mut self, path: &str, message: impl Into<String>) {
        self.list.0.push(self.places.violation(path, message));
    }

    fn path(&mut self, at: &str, path: &str) -> bool {
        let fault = path_fault(path);
        let good = fault.is_none();
        if let Some(fault) = fault {
            self.add(at, fault);
        }
        good
    }

    fn name(&mut self, spec: &Spec) {
        let name = &spec.name;
        let word = |part: &str| {
            !part.is_empty()
                && !part.starts_with('-')
                && !part.ends_with('-')
                && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        if name.len() > 253 || !name.split('.').all(word) {
            self.add("metadata.name", "must be lower-case letters, digits, '-' and '.', at most 253 characters");
        } else if spec.gateway.is_some()
            && (name.len() > CERTIFIED || name.split('.').any(|label| label.len() > CERTIFIED_LABEL))
        {
            self.add(
                "metadata.name",
                format!(
                    "must have at most {CERTIFIED} characters, and {CERTIFIED_LABEL} between dots, with a gateway: no \
                     certificate has a longer one"
                ),
            );
        }
    }

    fn state(&mut self, spec: &Spec) {
        if spec.state.len() > 64 {
            self.add("spec.state", "has more than 64 paths");
        }
        for (index, path) in spec.state.iter().enumerate() {
            let at = item("spec.state", index);
            if !self.path(&at, path) {
                continue;
            }
            if path == "/" {
                self.add(&at, "must not be '/': state is a folder of its own");
            } else if let Some(own) = OWN.into_iter().find(|own| within(path, own)) {
                self.add(&at, format!("must not be in {own}"));
            }
            for other in spec.state.iter().take(index) {
                if path == other {
                    self.add(&at, "is listed twice");
                } else if within(path, other) || within(other, path) {
                    self.add(&at, format!("overlaps '{other}'"));
                }
            }
        }
    }

    fn mounts(&mut self, spec: &Spec) {
        for (index, mount) in spec.mounts.iter().enumerate() {
            let at = item("spec.mounts", index);
            let path_at = format!("{at}.path");
            if !self.path(&path_at, &mount.path) {
                continue;
            }
            if mount.path == "/" || within(&mount.path, "/proc") {
                self.add(&path_at, "every generation has its own '/' and '/proc'");
            }
            if spec.mounts.iter().take(index).any(|other| other.path == mount.path) {
                self.add(&path_at, "is listed twice");
            }
            if spec.state.contains(&mount.path) {
                self.add(&path_at, "is a state path, which is always there and writable");
            }
            if !mount.carry && mount.read_only {
                self.add(&format!("{at}.readOnly"), "means nothing with carry: false");
            }
        }
    }

    fn workload(&mut self, spec: &Spec) {
        let workload = &spec.workload;
        if !workload.command.is_empty() {
            self.command("spec.workload.command", &workload.command);
        }
        if workload.args.iter().any(|word| word.contains('\0')) {
            self.add("spec.workload.args", "must not hold NUL");
        }
        for (index, variable) in workload.env.iter().enumerate() {
            let at = item("spec.workload.env", index);
            if variable.name.is_empty() || variable.name.contains(['=', '\0']) {
                self.add(&format!("{at}.name"), "must not be empty and must not hold '='");
            }
            if variable.value.contains('\0') {
                self.add(&format!("{at}.value"), "must not hold NUL");
            }
            if workload.env.iter().take(index).any(|other| other.name == variable.name) {
                self.add(&format!("{at}.name"), "is listed twice");
            }
        }
        if let Some(folder) = &workload.working_dir {
            self.path("spec.workload.workingDir", folder);
        }
        if workload.user.as_ref().is_some_and(super::UserRef::is_root) && !workload.allow_root {
            self.add("spec.workload.user", "is root: that needs allowRoot: true");
        }
        if workload.supplemental_groups.as_ref().is_some_and(|groups| groups.len() > 64) {
            self.add("spec.workload.supplementalGroups", "has more than 64 groups");
        }
        if workload.supplemental_groups.as_ref().is_some_and(|groups| groups.contains(&u32::MAX)) {
            self.add("spec.workload.supplementalGroups", "4294967295 is not a group");
        }
        if !(-1000..=1000).contains(&workload.oom_score_adj) {
            self.add("spec.workload.oomScoreAdj", "must be from -1000 to 1000");
        }
    }

    fn command(&mut self, at: &str, command: &[String]) {
        if command.first().is_none_or(String::is_empty) {
            self.add(at, "must name a program");
        }
        if command.iter().any(|word| word.contains('\0')) {
            self.add(at, "must not hold NUL");
        }
    }

    fn health(&mut self, spec: &Spec) {
        let health = &spec.health;
        let probes = [("startup", &health.startup), ("readiness", &health.readiness), ("liveness", &health.liveness)];
        for (name, probe) in probes {
            let Some(probe) = probe else { continue };
            let at = field("spec.health", name);
            self.probe(&at, probe);
            if name != "readiness" && probe.success_threshold != 1 {
                self.add(&format!("{at}.successThreshold"), format!("must be 1 for {name}"));
            }
            // Readiness that was notified is not asked for again.
            if name == "startup" || name == "readiness" && matches!(probe.action, Action::Notify) {
                continue;
            }
            // Less than this, and a program that never answers passes its trial before the probe has failed.
            let least = probe
                .initial_delay
                .as_millis()
                .saturating_add(probe.period.as_millis().saturating_mul(u64::from(probe.failure_threshold)));
            if !health.monitor.is_zero() && health.monitor.as_millis() < least {
                self.add(
                    "spec.health.monitor",
                    format!(
                        "{} is too short for {name} to fail in: initialDelay {} + period {} x failureThreshold {} = {}",
                        health.monitor,
                        probe.initial_delay,
                        probe.period,
                        probe.failure_threshold,
                        super::Span::from_millis(least),
                    ),
                );
            }
        }
        if health.startup_deadline.is_zero() {
            self.add("spec.health.startupDeadline", "must be more than 0s");
        }
        for (name, probe) in [("startup", &health.startup), ("readiness", &health.readiness)] {
            let Some(probe) = probe else { continue };
            if probe.initial_delay >= health.startup_deadline {
                self.add(
                    &format!("spec.health.{name}.initialDelay"),
                    format!("{} leaves nothing of startupDeadline {}", probe.initial_delay, health.startup_deadline),
                );
            }
            // One that nobody wrote is no mistake of theirs.
            if probe.timeout > health.startup_deadline && probe.timeout != super::health::TIMEOUT {
                self.add(
                    &format!("spec.health.{name}.timeout"),
                    format!("{} is longer than startupDeadline {}", probe.timeout, health.startup_deadline),
                );
            }
        }
    }

    fn probe(&mut self, at: &str, probe: &Probe) {
        if probe.period.as_millis() < 100 {
            self.add(&format!("{at}.period"), format!("is {}, the least is 100ms", probe.period));
        }
        if probe.timeout.is_zero() {
            self.add(&format!("{at}.timeout"), "must be more than 0s");
        }
        if probe.failure_threshold == 0 || probe.success_threshold == 0 {
            self.add(at, "thresholds are at least 1");
        }
        match &probe.action {
            Action::Exec(exec) => self.command(&format!("{at}.exec.command"), &exec.command),
            Action::HttpGet(get) => {
                // The path goes into a request line as it is.
                if !get.path.starts_with('/') || get.path.contains(|c: char| !c.is_ascii_graphic()) {
                    self.add(&format!("{at}.httpGet.path"), "must start with '/' and have no spaces");
                }
                self.host(&format!("{at}.httpGet.host"), &get.host);
            }
            Action::TcpSocket(socket) => self.host(&format!("{at}.tcpSocket.host"), &socket.host),
            Action::Notify => {}
        }
    }

    fn host(&mut self, at: &str, host: &str) {
        let bracketed = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let is_address = match bracketed {
            Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
            None => host.parse::<std::net::IpAddr>().is_ok(),
        };
        if !is_address && host != "localhost" {
            self.add(at, "must be localhost or an address: no name is looked up");
        }
    }

    fn update(&mut self, spec: &Spec) {
        let update = &spec.update;
        if !(1..=100).contains(&update.keep) {
            self.add("spec.update.keep", "must be from 1 to 100");
        }
        if !(1..=16).contains(&update.parallel) {
            self.add("spec.update.parallel", "must be from 1 to 16");
        }
        if update.pull_deadline.is_zero() {
            self.add("spec.update.pullDeadline", "must be more than 0s");
        }
        if update.confirm == Confirm::External && update.confirm_deadline.is_zero() {
            self.add("spec.update.confirmDeadline", "must be more than 0s with confirm: external");
        }
        if update.confirm == Confirm::Auto && update.confirm_deadline != super::Update::default().confirm_deadline {
            self.add("spec.update.confirmDeadline", "means nothing without confirm: external");
        }
    }

    fn registries(&mut self, spec: &Spec) {
        // A host is what can stand in front of a repository in a reference.
        let is_host = |host: &str| format!("{host}/x:1").parse::<ImageRef>().is_ok() && !host.contains('/');
        let registries = &spec.registries;
        for (host, mirrors) in &registries.mirrors {
            let at = field("spec.registries.mirrors", host);
            if !is_host(host) {
                self.add(&at, HOST_WANTED);
            }
            for (index, mirror) in mirrors.iter().enumerate() {
                if !is_host(mirror) {
                    self.add(&item(&at, index), HOST_WANTED);
                }
            }
        }
        for (index, host) in registries.insecure.iter().enumerate() {
            if !is_host(host) {
                self.add(&item("spec.registries.insecure", index), HOST_WANTED);
            }
        }
    }

    /// The supervisor's own files must not be where the workload reads or writes.
    fn own_files(&mut self, spec: &Spec) {
        if let Some(file) = &spec.policy_file
            && (file.is_empty() || file.chars().any(char::is_control))
        {
            self.add("spec.policyFile", "must be a path");
        }
        let registries = &spec.registries;
        let annotations = spec.watch.annotations.as_ref();
        if let Some(annotations) = annotations {
            for (at, name) in [("image", &annotations.image), ("policy", &annotations.policy)] {
                if name.is_empty() || name.contains(|c: char| c == '=' || c.is_control() || c.is_whitespace()) {
                    self.add(&format!("spec.watch.annotations.{at}"), "must be the name of an annotation");
                }
            }
            if annotations.image == annotations.policy {
                self.add("spec.watch.annotations.policy", "is the annotation that names the image");
            }
        }
        let annotations = annotations.map(|annotations| annotations.file.as_str());
        let listen = spec.api.listen.as_ref();
        if let Some(listen) = listen {
            if listen.address.parse::<std::net::SocketAddr>().is_err() {
                self.add("spec.api.listen.address", "must be an address and a port, as in 127.0.0.1:7443");
            }
            if listen.allow.is_empty() {
                self.add("spec.api.listen.allow", "must name somebody");
            }
            for (index, allow) in listen.allow.iter().enumerate() {
                let at = item("spec.api.listen.allow", index);
                if allow.san.is_empty() || allow.san.contains(|c: char| c == '*' || !c.is_ascii_graphic()) {
                    self.add(&format!("{at}.san"), "must be a DNS name or a URI, exactly as in the certificate");
                }
                if listen.allow.iter().take(index).any(|other| other.san == allow.san) {
                    self.add(&format!("{at}.san"), "is listed twice");
                }
                if allow.allow_wider && allow.role != super::Role::Update {
                    self.add(&format!("{at}.allowWider"), "means nothing without role: update");
                }
            }
        }
        let gateway = spec.gateway.iter().flat_map(Gateway::files).map(|(at, path)| (at, Some(path)));
        let absolute = [
            ("spec.registries.credentials", registries.credentials.as_deref()),
            ("spec.registries.certificates", registries.certificates.as_deref()),
            ("spec.watch.annotations.file", annotations),
            ("spec.api.listen.certificate", listen.map(|listen| listen.certificate.as_str())),
            ("spec.api.listen.key", listen.map(|listen| listen.key.as_str())),
            ("spec.api.listen.clientCa", listen.map(|listen| listen.client_ca.as_str())),
            ("spec.api.socket", Some(spec.api.socket.as_str())),
        ];
        let absolute: Vec<(&str, Option<&str>)> = absolute.into_iter().chain(gateway).collect();
        for (at, path) in &absolute {
            if let Some(path) = path {
                self.path(at, path);
            }
        }
        for (at, why) in spec.gateway.iter().flat_map(Gateway::faults) {
            self.add(at, why);
        }
        if spec.api.socket.len() > SOCKET_BYTES {
            self.add("spec.api.socket", format!("is longer than {SOCKET_BYTES} bytes"));
        }
        let keys = spec.orders.keys.iter().enumerate();
        let keys: Vec<_> = keys.map(|(index, key)| (format!("spec.orders.keys[{index}].file"), key)).collect();
        let policy = [("spec.policyFile", spec.policy_file.as_deref())];
        let keys = keys.iter().map(|(at, key)| (at.as_str(), key.file.as_deref()));
        for (at, path) in absolute.into_iter().chain(policy).chain(keys) {
            let carried = spec.mounts.iter().filter(|mount| mount.carry).map(|mount| mount.path.as_str());
            let shown = spec.state.iter().map(String::as_str).chain(carried);
            if let Some(folder) = path.and_then(|path| shown.into_iter().find(|folder| within(path, folder))) {
                self.add(at, format!("is in '{folder}', which the workload sees"));
            }
        }
    }
}
