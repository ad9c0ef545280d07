//! Programs that are none: kinds, interpreters, machines, arguments, environments.

use serde_json::{Value, json};
use tar::EntryType;

use super::Update::{Fails, RolledBack, Serves};
use super::{Hostile, Update, Verdict, configured, harmless, tar, then};
use crate::harness::tar::Tar;

pub(super) fn cases() -> Vec<Hostile> {
    [kinds(), scripts(), binaries(), words()].into_iter().flatten().collect()
}

/// An image whose program is `path`.
fn starts(name: &'static str, tar_of: Tar, path: &str, tree: &[&str], update: Update) -> Hostile {
    configured(name, &["S53"], tar_of, "Entrypoint", json!([path]), then(tree, update))
}

const UNUSABLE: &str = "program-unusable";

fn kinds() -> Vec<Hostile> {
    vec![
        starts(
            "a folder",
            Tar::new().dir("prog", 0o755),
            "/prog",
            &["d 755 0:0 prog"],
            Fails(UNUSABLE, "is not a regular file"),
        ),
        starts(
            "a FIFO",
            Tar::new().of(EntryType::Fifo, "prog"),
            "/prog",
            &["p 644 0:0 prog"],
            Fails(UNUSABLE, "is not a regular file"),
        ),
        starts(
            "a device",
            Tar::new().file("x", "1"),
            "/dev/zero",
            &["f 644 0:0 x 1"],
            Fails(UNUSABLE, "is not a regular file"),
        ),
        starts("the terminal", Tar::new().file("x", "1"), "/dev/stdin", &["f 644 0:0 x 1"], Fails(UNUSABLE, "")),
        starts("a descriptor", Tar::new().file("x", "1"), "/proc/self/fd/3", &["f 644 0:0 x 1"], Fails(UNUSABLE, "")),
        starts("the shim", Tar::new().file("x", "1"), "/proc/self/exe", &["f 644 0:0 x 1"], Fails(UNUSABLE, "")),
        starts(
            "a link to the shim",
            Tar::new().symlink("prog", "/proc/1/exe"),
            "/prog",
            &["l 777 0:0 prog -> /proc/1/exe"],
            Fails(UNUSABLE, ""),
        ),
        starts(
            "a link to itself",
            Tar::new().symlink("prog", "prog"),
            "/prog",
            &["l 777 0:0 prog -> prog"],
            Fails(UNUSABLE, ""),
        ),
        starts(
            "a link far up",
            Tar::new().symlink("prog", "../../../../../../app/molt-testd"),
            "/prog",
            &["l 777 0:0 prog -> ../../../../../../app/molt-testd"],
            Serves,
        ),
        starts(
            "a file in the state that is not there",
            Tar::new().file("x", "1"),
            "/sandbox/state/x",
            &["f 644 0:0 x 1"],
            Fails(UNUSABLE, "does not exist"),
        ),
        starts(
            "a name with control characters",
            Tar::new().file("x", "1"),
            "/\u{1b}[2J\n\u{202e}",
            &["f 644 0:0 x 1"],
            Fails(UNUSABLE, "does not exist"),
        ),
        starts("a name of one slash", Tar::new().file("x", "1"), "/", &["f 644 0:0 x 1"], Fails(UNUSABLE, "")),
        starts("no name", Tar::new().file("x", "1"), "", &["f 644 0:0 x 1"], Fails(UNUSABLE, "")),
        starts(
            "a file that is not executable",
            Tar::new().file("prog", "#!/bin/sh\n"),
            "/prog",
            &["f 644 0:0 prog #!/bin/sh\\n"],
            Fails(UNUSABLE, "is not executable"),
        ),
    ]
}

fn scripts() -> Vec<Hostile> {
    let script = |name: &'static str, text: &'static str, line: &str, update: Update| {
        let line = format!("f 755 0:0 app/script {line}");
        let tar_of = Tar::new().dir("app", 0o755).file_mode("app/script", text, 0o755);
        starts(name, tar_of, "/app/script", &["d 755 0:0 app", line.trim_end()], update)
    };
    vec![
        script(
            "a script that interprets itself",
            "#!/app/script\n",
            "#!/app/script\\n",
            Fails(UNUSABLE, "more than five interpreters in a row"),
        ),
        script(
            "a script without its interpreter",
            "#!/no/such/sh\n",
            "#!/no/such/sh\\n",
            Fails(UNUSABLE, "does not exist"),
        ),
        script(
            "a script with a folder for an interpreter",
            "#!/etc\n",
            "#!/etc\\n",
            Fails(UNUSABLE, "not a regular file"),
        ),
        script(
            "a script with a device for an interpreter",
            "#!/dev/zero\n",
            "#!/dev/zero\\n",
            Fails(UNUSABLE, "not a regular file"),
        ),
        script("a script with the shim for an interpreter", "#!/proc/1/exe\n", "#!/proc/1/exe\\n", Fails(UNUSABLE, "")),
        script("a script without a name of its interpreter", "#!  \n", "#!  \\n", Fails(UNUSABLE, "an empty #! line")),
        script(
            "a script with control characters",
            "#!/\u{1b}[2J\rx\n",
            "#!/\\u{1b}[2J\\rx\\n",
            Fails(UNUSABLE, "does not exist"),
        ),
        script("an empty file", "", "", Fails(UNUSABLE, "neither an ELF file nor a #! script")),
        script("two bytes", "#!", "#!", Fails(UNUSABLE, "an empty #! line")),
    ]
}

/// An ELF header of 64 bits, little-endian, with one program header: elf(5).
fn elf(machine: u16, kind: u32, interpreter: &[u8]) -> String {
    let mut bytes = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    bytes.extend(3_u16.to_le_bytes());
    bytes.extend(machine.to_le_bytes());
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend(0x40_u64.to_le_bytes()); // entry
    bytes.extend(64_u64.to_le_bytes()); // program headers
    bytes.extend([0; 12]);
    bytes.extend([64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend(kind.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(120_u64.to_le_bytes()); // offset
    bytes.extend([0; 16]);
    bytes.extend((interpreter.len() as u64).to_le_bytes());
    bytes.extend([0; 16]);
    bytes.extend(interpreter);
    // ASCII all through, and so text.
    String::from_utf8(bytes).expect("no byte above 127")
}

/// This machine and another one.
fn machines() -> (u16, u16) {
    if cfg!(target_arch = "aarch64") { (0xb7, 62) } else { (62, 40) }
}

fn binaries() -> Vec<Hostile> {
    let (own, foreign) = machines();
    let binary = |name: &'static str, text: String, update: Update| {
        let line = if text.len() > 60 {
            format!("f 755 0:0 app/binary {} bytes", text.len())
        } else {
            format!("f 755 0:0 app/binary {}", text.escape_debug())
        };
        let tar_of = Tar::new().dir("app", 0o755).file_mode("app/binary", &text, 0o755);
        starts(name, tar_of, "/app/binary", &["d 755 0:0 app", &line], update)
    };
    let interpreted = |name, interpreter: &[u8], update| binary(name, elf(own, 3, interpreter), update);
    vec![
        binary("four bytes of an ELF file", "\x7fELF".to_owned(), Fails(UNUSABLE, "for another machine")),
        binary("a program for another machine", elf(foreign, 1, b""), Fails(UNUSABLE, "for another machine")),
        binary("an ELF header and nothing else", elf(own, 1, b""), RolledBack("exited-in-trial")),
        interpreted("an ELF interpreter that is not there", b"/no/such/ld.so\0", Fails(UNUSABLE, "does not exist")),
        interpreted("an ELF interpreter far up", b"../../../../../../no/ld.so\0", Fails(UNUSABLE, "does not exist")),
        interpreted("the shim for an ELF interpreter", b"/proc/1/exe\0", Fails(UNUSABLE, "")),
        interpreted("a folder for an ELF interpreter", b"/etc\0", Fails(UNUSABLE, "not a regular file")),
        interpreted("an ELF interpreter with control characters", b"/\x1b[2J\n\0", Fails(UNUSABLE, "does not exist")),
    ]
}

/// One more file, and a changed config, and it runs.
fn runs(name: &'static str, rows: &[super::Row], key: &'static str, value: Value, update: Update) -> Hostile {
    configured(name, rows, Tar::new().file("x", "1"), key, value, then(&["f 644 0:0 x 1"], update))
}

fn words() -> Vec<Hostile> {
    let path = "PATH=/usr/local/bin:/usr/bin:/bin";
    let daemon = "/app/molt-testd";
    let variables: Vec<String> = (0..2000).map(|n| format!("V{n}={}", "x".repeat(50))).collect();
    let mut many = vec![path.to_owned()];
    many.extend(variables);
    vec![
        runs(
            "variables that load libraries and libraries' friends",
            &["S53"],
            "Env",
            json!([
                path,
                "LD_PRELOAD=/evil.so",
                "LD_LIBRARY_PATH=/evil",
                "LD_AUDIT=/evil.so",
                "GCONV_PATH=/evil",
                "MOLT_SOCKET=/evil",
                "MOLT_STORE=/evil",
                "RUST_LOG=trace",
                "HOME=/../../etc",
                "NOTIFY_SOCKET=/evil"
            ]),
            Serves,
        ),
        runs(
            "variables with newlines, escapes and no name",
            &["S53", "U36"],
            "Env",
            json!([path, "A=1\n2\u{1b}[2J", "B\n=3", "=4", "no equals sign", "PATH", "C==", "\u{202e}=5"]),
            Serves,
        ),
        runs("two thousand variables", &["S53"], "Env", json!(many), Serves),
        runs(
            "a variable of 200 kB",
            &["S53"],
            "Env",
            json!([path, format!("BIG={}", "x".repeat(200_000))]),
            RolledBack("exec-failed"),
        ),
        runs(
            "an argument of 200 kB",
            &["S53"],
            "Entrypoint",
            json!([daemon, "x".repeat(200_000)]),
            RolledBack("exec-failed"),
        ),
        runs("twenty thousand arguments", &["S53"], "Cmd", json!(vec!["argument"; 20_000]), Serves),
        runs(
            "arguments with control characters",
            &["S53", "U36"],
            "Cmd",
            json!(["\u{1b}]0;title\u{7}", "\n", "\u{202e}"]),
            Serves,
        ),
        runs("a path of relative folders", &["S53"], "Env", json!(["PATH=:.:app:/app"]), Serves),
        tar(
            "the program belongs to root and would make one root",
            &["U31", "S53"],
            Tar::new().dir("app", 0o755).file_mode("app/rootshell", "#!/bin/sh\nexec id -u\n", 0o6755),
            harmless(&["d 755 0:0 app", "f 6755 0:0 app/rootshell #!/bin/sh\\nexec id -u\\n"]),
        ),
        configured(
            "commands that are not in PATH but in the root",
            &["S53"],
            Tar::new().file_mode("daemon", "#!/bin/sh\n", 0o755),
            "Entrypoint",
            json!(["daemon"]),
            Verdict::Taken(
                vec!["f 755 0:0 daemon #!/bin/sh\\n".to_owned()],
                Fails(UNUSABLE, "is in no folder of PATH="),
            ),
        ),
    ]
}
