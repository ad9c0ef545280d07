//! The spec as it lies on disk, with what goes before it (flags, annotations): read whole, or not at all. At start, and
//! again when somebody asks for it.
//!
//! In: flags, files. Out: a spec that was checked, its policy as text, what it asks for. Must not: take a file that is not
//! a regular one, read one without an end, look at a path twice, or let a part of it count when another part is wrong.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
};

use molt_core::{
    ids::ImageRef,
    machine::Wanted,
    spec::{self, PolicySource, Spec, Violations, document::Places},
};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};

use super::{annotations, gateway, order::key::Key};
use crate::{
    cli::InitArgs,
    effects::plan::{self, sha256},
};

/// Longest annotations file: Kubernetes takes 256 KiB of annotations in all, escaped they can be four times that.
const ANNOTATIONS: usize = 1 << 20;
/// How often a file that changes while it is read is read again.
const ATTEMPTS: usize = 3;

/// Where the spec comes from.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    file: Option<PathBuf>,
    policy: Option<PathBuf>,
    image: Option<String>,
    state: Vec<String>,
    name: Option<String>,
    command: Vec<String>,
}

/// A spec that was read.
#[derive(Debug)]
pub(crate) struct Taken {
    /// The flags applied.
    pub(crate) spec: Spec,
    /// Its policy: empty for the default, `unconfined`, or YAML.
    pub(crate) policy: String,
    /// Why its annotations say nothing.
    pub(crate) astray: Option<String>,
}

impl Taken {
    /// What it asks for; nothing where a part of it could not be read.
    pub(crate) fn wanted(&self) -> Option<Wanted> {
        let image = self.spec.image.clone();
        let text = image.as_ref().map(|image| sha256(image.to_string().as_bytes()));
        let policy = (!self.policy.is_empty()).then(|| sha256(self.policy.as_bytes()));
        let wanted = Wanted { image, policy: self.policy.clone(), texts: (text, policy) };
        self.astray.is_none().then_some(wanted)
    }
}

impl Source {
    /// The flags of `molt init`.
    pub(crate) fn new(args: &InitArgs) -> Self {
        Self {
            file: args.spec.clone(),
            policy: args.policy.clone(),
            image: args.image.clone(),
            state: args.state.clone(),
            name: args.name.clone(),
            command: args.command.clone(),
        }
    }

    /// The spec file, if there is one.
    pub(crate) fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// The files that are watched as the spec asks.
    pub(crate) fn watched(&self, spec: &Spec) -> Vec<PathBuf> {
        let mut files = Vec::new();
        if spec.watch.files {
            files.extend(self.file.clone());
            let named = spec.policy_file.as_ref().map(|file| self.beside(file));
            files.extend(self.policy.clone().or(named.filter(|_| spec.policy.is_none())));
        }
        files.extend(spec.watch.annotations.as_ref().map(|annotations| PathBuf::from(&annotations.file)));
        files
    }

    /// A path that may be relative to the spec's own folder.
    fn beside(&self, path: &str) -> PathBuf {
        beside(self.file.as_deref().unwrap_or(Path::new("/")), path)
    }

    /// Reads all of it. Blocks.
    pub(crate) fn read(&self) -> Result<Taken, String> {
        let mut spec = match &self.file {
            None => Spec::default(),
            Some(path) => {
                let text = text(path, spec::MAX_BYTES)?;
                document(&text, |_, _| Violations::default())
                    .map_err(|violations| format!("{} is not a valid spec:\n{violations}", path.display()))?
            }
        };
        let (noted, astray) = match Self::noted(&spec) {
            Ok(noted) => (noted, None),
            Err(why) => (Noted::default(), Some(why)),
        };
        spec.image = noted.image.or(spec.image);
        if let Some(image) = &self.image {
            spec.image = Some(image.parse::<ImageRef>().map_err(|error| format!("--image: {error}"))?);
        }
        if !self.state.is_empty() {
            spec.state.clone_from(&self.state);
        }
        if let Some(name) = &self.name {
            spec.name.clone_from(name);
        }
        if !self.command.is_empty() {
            spec.workload.command.clone_from(&self.command);
            spec.workload.args.clear();
        }
        spec.check().map_err(|violations| format!("the spec is not valid:\n{violations}"))?;
        let policy = self.policy_of(&spec, noted.policy)?;
        if spec.image.is_none() && spec.workload.command.is_empty() {
            let why = astray.map(|why| format!("; {why}")).unwrap_or_default();
            return Err(format!(
                "nothing to run: give an image (--image, or spec.image) or a command (molt init -- CMD){why}"
            ));
        }
        Ok(Taken { spec, policy, astray })
    }

    /// The text of the policy: by flag, by annotation, in the spec, in a file that the spec names; empty for the default.
    fn policy_of(&self, spec: &Spec, noted: Option<String>) -> Result<String, String> {
        Ok(match (&self.policy, noted, &spec.policy, &spec.policy_file) {
            (Some(path), ..) => policy_file(path).map_err(|faults| faults.join("\n"))?,
            (None, Some(policy), ..) => policy,
            (None, None, Some(PolicySource::Unconfined), _) => "unconfined".to_owned(),
            // It was judged where it stands.
            (None, None, Some(PolicySource::Inline(policy)), _) => {
                serde_json::Value::Object(policy.clone()).to_string()
            }
            (None, None, None, Some(path)) => policy_file(&self.beside(path)).map_err(|faults| faults.join("\n"))?,
            (None, None, None, None) => String::new(),
        })
    }

    /// What the annotations say.
    fn noted(spec: &Spec) -> Result<Noted, String> {
        let Some(wanted) = &spec.watch.annotations else { return Ok(Noted::default()) };
        let all = text(Path::new(&wanted.file), ANNOTATIONS)
            .and_then(|text| annotations::parse(&text).map_err(|why| format!("{}: {why}", wanted.file)))?;
        let wrong = |name: &str, why: &str| format!("{}: the annotation {name}: {why}", wanted.file);
        let image = all.get(&wanted.image).map(|image| image.trim().parse::<ImageRef>()).transpose();
        let image = image.map_err(|error| wrong(&wanted.image, &error.to_string()))?;
        let policy = all.get(&wanted.policy).cloned();
        if let Some(policy) = &policy {
            let empty = policy.trim().is_empty().then(|| "is empty".to_owned());
            let fault = empty.or_else(|| plan::Policy::read(policy).err().map(|fault| fault.message));
            if let Some(why) = fault {
                return Err(wrong(&wanted.policy, &why));
            }
        }
        Ok(Noted { image, policy })
    }
}

/// What annotations name.
#[derive(Debug, Default)]
struct Noted {
    image: Option<ImageRef>,
    policy: Option<String>,
}

/// A spec document, with all that stands in it in a form of its own: a policy, keys, the gateway's address. `more` may find
/// more. What Molt starts with and what `molt spec check` calls fine is the same, by this.
pub(crate) fn document(text: &str, more: impl FnOnce(&Spec, &Places) -> Violations) -> Result<Spec, Violations> {
    let policy = |node: &spec::document::Node| molt_policy::from_node(node).err().unwrap_or_default();
    spec::parse_with(text, policy, |spec, places| {
        let mut found = more(spec, places);
        let keys = spec.orders.keys.iter().enumerate().filter(|(_, key)| key.key.is_some() && key.file.is_none());
        for (index, why) in keys.filter_map(|(index, key)| Some((index, Key::of(key).err()?))) {
            found.0.push(places.violation(&format!("spec.orders.keys[{index}].key"), why));
        }
        let settings = spec.gateway.as_ref().filter(|settings| settings.url_fault().is_none());
        if let Some(Err(fault)) = settings.map(gateway::dial) {
            found.0.push(places.violation("spec.gateway.url", fault.to_string()));
        }
        found
    })
}

/// A path that may be relative to the folder of the spec in `file`.
pub(crate) fn beside(file: &Path, path: &str) -> PathBuf {
    file.parent().unwrap_or(Path::new("/")).join(path)
}

/// The text of a file with a policy, which is checked: else every fault with the file's name. One with nothing in it was cut
/// short, and does not mean the default.
pub(crate) fn policy_file(path: &Path) -> Result<String, Vec<String>> {
    let name = path.display();
    let text = text(path, molt_policy::MAX_BYTES).map_err(|why| vec![why])?;
    if text.trim().is_empty() {
        return Err(vec![format!("{name} is empty: write the policy into it, or name no file for the default one")]);
    }
    match plan::Policy::parse(&text) {
        Ok(_) => Ok(text),
        Err(faults) => Err(faults.0.iter().map(|fault| format!("{name}:{fault}")).collect()),
    }
}

/// The text of a regular file of at most `limit` bytes: opened once, and what was opened is what is looked at and read.
pub(crate) fn text(path: &Path, limit: usize) -> Result<String, String> {
    let fail = |why: &dyn std::fmt::Display| format!("failed to read {}: {why}", path.display());
    for _ in 0..ATTEMPTS {
        // A FIFO or a device is not waited for.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = openat(CWD, path, flags, Mode::empty()).map_err(|errno| fail(&errno))?;
        let before = fstat(&file).map_err(|errno| fail(&errno))?;
        if FileType::from_raw_mode(before.st_mode) != FileType::RegularFile {
            return Err(fail(&"is not a regular file"));
        }
        let mut file = std::fs::File::from(file);
        let mut bytes = Vec::new();
        let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
        (&mut file).take(most).read_to_end(&mut bytes).map_err(|error| fail(&error))?;
        if bytes.len() > limit {
            return Err(fail(&format!("is larger than {} KiB", limit >> 10)));
        }
        let after = fstat(&file).map_err(|errno| fail(&errno))?;
        let same = |of: fn(&rustix::fs::Stat) -> (i64, i64, i64)| of(&before) == of(&after);
        #[expect(clippy::cast_possible_wrap, reason = "nanoseconds are less than a thousand million")]
        if same(|stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec as i64)) {
            return String::from_utf8(bytes).map_err(|_| fail(&"is not UTF-8"));
        }
    }
    Err(fail(&"changes while it is read; write another file and rename it over this one"))
}

/// Fields in which two specs differ, by name, image and policy apart: `workload.env`, `health`.
pub(crate) fn differing(old: &Spec, new: &Spec) -> Vec<String> {
    const APART: [&str; 3] = ["image", "policy", "policyFile"];
    let fields = |spec: &Spec| spec.to_document().get("spec").cloned().unwrap_or_default();
    let (old_fields, new_fields) = (fields(old), fields(new));
    let mut found = Vec::new();
    if old.name != new.name {
        found.push("metadata.name".to_owned());
    }
    for (name, old) in old_fields.as_object().into_iter().flatten() {
        let new = new_fields.get(name).unwrap_or(&serde_json::Value::Null);
        if old == new || APART.contains(&name.as_str()) {
            continue;
        }
        match (old.as_object(), new.as_object()) {
            (Some(old), Some(new)) => {
                let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
                let differ = keys.into_iter().filter(|key| old.get(*key) != new.get(*key));
                found.extend(differ.map(|key| format!("{name}.{key}")));
            }
            _ => found.push(name.clone()),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> PathBuf {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("molt-spec-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn source(folder: &Path, spec: &str) -> Source {
        let file = folder.join("sandbox.yaml");
        let head = "apiVersion: molt.dev/v1alpha1\nkind: Sandbox\nspec:\n";
        std::fs::write(&file, format!("{head}{spec}")).unwrap();
        Source { file: Some(file), policy: None, image: None, state: vec![], name: None, command: vec![] }
    }

    #[test]
    fn only_a_regular_file_within_its_bound_is_read() {
        let folder = folder();
        let file = folder.join("f");
        std::fs::write(&file, "12345678").unwrap();
        assert_eq!(text(&file, 8).unwrap(), "12345678");
        assert!(text(&file, 7).unwrap_err().contains("is larger"));
        std::fs::write(&file, [0xff]).unwrap();
        assert!(text(&file, 8).unwrap_err().contains("is not UTF-8"));
        assert!(text(&folder, 8).unwrap_err().contains("is not a regular file"));
        assert!(text(Path::new("/dev/zero"), 8).unwrap_err().contains("is not a regular file"));
        assert!(text(&folder.join("none"), 8).unwrap_err().contains("No such file"));
        let fifo = folder.join("fifo");
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        // It has no writer: who waits for one waits for ever.
        assert!(text(&fifo, 8).unwrap_err().contains("is not a regular file"));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn annotations_go_before_the_spec_and_count_whole_or_not_at_all() {
        let folder = folder();
        let notes = folder.join("annotations");
        let spec = format!("  image: localhost/app:1\n  watch: {{annotations: {{file: {}}}}}\n", notes.display());
        let source = source(&folder, &spec);
        let astray = |source: &Source| source.read().unwrap().astray.unwrap_or_default();
        assert!(astray(&source).contains("No such file"), "{}", astray(&source));
        assert!(source.read().unwrap().wanted().is_none(), "what is not known asks for nothing");
        std::fs::write(&notes, "other=\"x\"\n").unwrap();
        let own = source.read().unwrap().wanted().unwrap();
        assert_eq!(own.image, "localhost/app:1".parse().ok());
        std::fs::write(&notes, "molt.dev/image=\"localhost/app:2\"\nmolt.dev/policy=\"unconfined\"").unwrap();
        let read = source.read().unwrap();
        assert_eq!((read.spec.image.clone(), read.policy.as_str()), ("localhost/app:2".parse().ok(), "unconfined"));
        assert_ne!(read.wanted().unwrap().texts, own.texts);
        for wrong in
            ["molt.dev/image=\"NOT AN IMAGE\"", "molt.dev/image=\"localhost/app:2\"\nmolt.dev/policy=\"x: 1\"", "half"]
        {
            std::fs::write(&notes, wrong).unwrap();
            assert!(!astray(&source).is_empty(), "{wrong}");
            assert_eq!(source.read().unwrap().spec.image, "localhost/app:1".parse().ok());
        }
        assert_eq!(source.watched(&source.read().unwrap().spec), [notes]);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn faults_of_an_inline_policy_have_the_places_of_the_spec() {
        let folder = folder();
        let wrong = "  image: localhost/app:1\n  state: [relative]\n  policy:\n    version: 1\n    filesystem_policy:\n      \
                     include_workdir: 3\n      read_onlyy: [/usr]\n  orders:\n    keys:\n      \
                     - {id: a, algorithm: EdDSA, key: nonsense, operations: [update]}\n";
        let why = source(&folder, wrong).read().unwrap_err();
        for line in [
            "5:11: spec.state[0]: must be an absolute path",
            "9:24: spec.policy.filesystem_policy.include_workdir: must be true or false",
            "10:7: spec.policy.filesystem_policy.read_onlyy: unknown field; did you mean 'read_only'?",
            "13:40: spec.orders.keys[0].key: it must be one PEM block 'PUBLIC KEY', or a JWK",
        ] {
            assert!(why.lines().any(|found| found == line), "{line} is not in\n{why}");
        }
        assert_eq!(why.lines().count(), 5, "{why}");
        let good = "  image: localhost/app:1\n  policy: {version: 1, filesystem_policy: {read_only: [/usr]}}\n";
        let read = source(&folder, good).read().unwrap();
        // The text is what a change is told by: it stays as it was.
        assert_eq!(read.policy, r#"{"filesystem_policy":{"read_only":["/usr"]},"version":1}"#);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_gateway_that_could_never_be_dialled_is_a_fault_of_the_spec() {
        for (url, why) in [
            ("https://gateway.example.com:99999/", "must have a port"),
            ("https://[::1", "is no URL"),
            ("https://[::1]x", "is no URL"),
            ("https://0.0.0.0/", "an address that no registry has"),
        ] {
            let spec = format!("spec: {{gateway: {{url: \"{url}\", tokenFile: /t}}}}");
            let text = format!("apiVersion: molt.dev/v1alpha1\nkind: Sandbox\n{spec}\n");
            let faults = document(&text, |_, _| Violations::default()).unwrap_err().to_string();
            assert!(faults.starts_with("3:23: spec.gateway.url: ") && faults.contains(why), "{faults}");
            assert_eq!(faults.lines().count(), 1, "{faults}");
        }
    }

    #[test]
    fn a_policy_file_with_nothing_in_it_is_refused() {
        let folder = folder();
        let policy = folder.join("policy.yaml");
        let mut source = source(&folder, "  image: localhost/app:1\n  policyFile: policy.yaml\n");
        let mut flag = Source { policy: Some(policy.clone()), ..source.clone() };
        flag.file = None;
        flag.image = Some("localhost/app:1".to_owned());
        for empty in ["", " \n", "\n\n"] {
            std::fs::write(&policy, empty).unwrap();
            for source in [&source, &flag] {
                let why = source.read().unwrap_err();
                assert!(why.starts_with(&format!("{} is empty: ", policy.display())), "{why}");
            }
        }
        std::fs::write(&policy, "version: 1\nfilesystem: {}\nlandlock: 5\n").unwrap();
        let why = flag.read().unwrap_err();
        assert!(why.lines().count() == 2 && why.contains("policy.yaml:2:1: filesystem: unknown field"), "{why}");
        for good in ["version: 1\n", "unconfined\n"] {
            std::fs::write(&policy, good).unwrap();
            assert_eq!((source.read().unwrap().policy, flag.read().unwrap().policy), (good.into(), good.into()));
        }
        (source.policy, flag.policy) = (None, None);
        assert_eq!(flag.read().unwrap().policy, "", "none is the default");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_differs_is_named_and_never_shown() {
        let old = Spec::default();
        let env = spec::EnvVar { name: "TOKEN".into(), value: "hunter2".into() };
        let mut new = Spec { name: "other".into(), image: "localhost/app:1".parse().ok(), ..Spec::default() };
        new.workload.env.push(env);
        new.update.keep = 7;
        new.state = vec!["/other".into()];
        assert_eq!(differing(&old, &new), ["metadata.name", "state", "update.keep", "workload.env"]);
        assert!(differing(&old, &Spec { image: new.image, ..Spec::default() }).is_empty());
    }
}
