//! The program, checked as the workload's user, in its root, inside its Landlock domain, before anything is stopped:
//! found, a regular file, executable, its interpreter there, for this machine.
//!
//! In: the launch document. Out: the path to exec. Must not: run anything.

use std::{ffi::CString, io::Read as _};

use molt_core::launch::{Failure, Launch};
use rustix::{
    fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, accessat, fstat, openat2},
    io::Errno,
};

use crate::step::{Step, refuse};

const STEP: &str = "program";
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
#[cfg(target_arch = "x86_64")]
const MACHINE: (u16, &str) = (62, "x86-64");
#[cfg(target_arch = "aarch64")]
const MACHINE: (u16, &str) = (183, "arm64");

/// Finds and checks the program.
pub(crate) fn program(launch: &Launch) -> Step<CString> {
    let found = find(&launch.program, launch.env.get("PATH").map_or(DEFAULT_PATH, String::as_str))?;
    executable(&found, "")?;
    interpreters(&found, 0)?;
    CString::new(found).map_err(|_| refuse(STEP, "a path with a zero byte"))
}

/// A name with a slash is itself; a bare one is looked up. The first hit that may be executed wins, as in execvp(3).
pub(crate) fn find(name: &str, path: &str) -> Step<String> {
    if name.contains('/') {
        return Ok(name.to_owned());
    }
    let mut refused = None;
    for folder in path.split(':').filter(|folder| folder.starts_with('/')) {
        let candidate = format!("{}/{name}", folder.trim_end_matches('/'));
        match executable(&candidate, "") {
            Ok(()) => return Ok(candidate),
            Err(failure) if failure.errno == Errno::NOENT.raw_os_error() => {}
            Err(failure) => refused = refused.or(Some(failure)),
        }
    }
    Err(refused.unwrap_or_else(|| missing(format!("{name} is in no folder of PATH={path}"))))
}

fn missing(detail: String) -> Failure {
    Failure { errno: Errno::NOENT.raw_os_error(), ..refuse(STEP, detail) }
}

fn executable(path: &str, of: &str) -> Step<()> {
    let fail =
        |errno: Errno, why: &str| Failure { errno: errno.raw_os_error(), ..refuse(STEP, format!("{path}{of} {why}")) };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let fd = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS).map_err(|errno| match errno {
        Errno::NOENT | Errno::NOTDIR => fail(Errno::NOENT, "does not exist in the image"),
        errno => fail(errno, "cannot be reached by the workload's user"),
    })?;
    let stat = fstat(&fd).map_err(|errno| fail(errno, "cannot be looked at"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(fail(Errno::ACCESS, "is not a regular file"));
    }
    accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
        .map_err(|errno| fail(errno, "is not executable for the workload's user"))?;
    let text = CString::new(path).map_err(|_| refuse(STEP, "a path with a zero byte"))?;
    match molt_sys::process::may_exec(&text) {
        Ok(()) => Ok(()),
        // Before Linux 6.14 there is no such question; a format the kernel does not know is looked at below.
        Err(error) if matches!(error.errno, Errno::INVAL | Errno::NOSYS | Errno::NOEXEC) => Ok(()),
        Err(error) => Err(fail(
            error.errno,
            "may not be executed: the policy grants no execute right there (read_only or read_write)",
        )),
    }
}

/// Follows `#!` lines (the kernel allows five) and reads the ELF header.
fn interpreters(path: &str, depth: u32) -> Step<()> {
    if depth > 5 {
        return Err(refuse(STEP, format!("{path}: more than five interpreters in a row")));
    }
    let mut head = Vec::new();
    match std::fs::File::open(path) {
        Ok(file) => {
            file.take(4096).read_to_end(&mut head).map_err(|error| refuse(STEP, format!("{path}: {error}")))?;
        }
        // Executable but not readable: the kernel can read it, the user cannot, and so neither can this check.
        Err(_) => return Ok(()),
    }
    if let Some(rest) = head.strip_prefix(b"#!") {
        let line = rest.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let words: Vec<&[u8]> =
            line.split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty()).collect();
        let Some(interpreter) = words.first() else { return Err(refuse(STEP, format!("{path}: an empty #! line"))) };
        let interpreter = String::from_utf8_lossy(interpreter).into_owned();
        executable(&interpreter, &format!(", the interpreter of {path},"))?;
        return interpreters(&interpreter, depth + 1);
    }
    if !head.starts_with(b"\x7fELF") {
        return Err(Failure {
            errno: Errno::NOEXEC.raw_os_error(),
            ..refuse(STEP, format!("{path} is neither an ELF file nor a #! script"))
        });
    }
    let machine = head.get(18..20).and_then(|bytes| bytes.try_into().ok()).map(u16::from_le_bytes);
    if machine != Some(MACHINE.0) {
        return Err(Failure {
            errno: Errno::NOEXEC.raw_os_error(),
            ..refuse(STEP, format!("{path} is an ELF file for another machine than {}", MACHINE.1))
        });
    }
    match elf_interpreter(&head) {
        Some(interpreter) => executable(&interpreter, &format!(", the ELF interpreter of {path},")),
        None => Ok(()),
    }
}

/// `PT_INTERP` of a 64-bit little-endian ELF file, if its header and path lie in the first page. elf(5).
fn elf_interpreter(head: &[u8]) -> Option<String> {
    let word = |at: usize, len: usize| -> Option<u64> {
        let bytes = head.get(at..at.checked_add(len)?)?;
        Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    let (start, size, count) = (word(32, 8)?, word(54, 2)?, word(56, 2)?);
    (0..count.min(64)).find_map(|number| {
        let header = usize::try_from(start.checked_add(number * size)?).ok()?;
        if word(header, 4)? != 3 {
            return None;
        }
        let (offset, length) =
            (usize::try_from(word(header + 8, 8)?).ok()?, usize::try_from(word(header + 32, 8)?).ok()?);
        let bytes = head.get(offset..offset.checked_add(length)?)?;
        Some(String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned())
    })
}
