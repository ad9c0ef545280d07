//! Who a workload runs as, and which signal stops it, as people write them.
//!
//! In: `sandbox`, `1000:2000`, `SIGTERM`. Out: names or numbers. Must not: look a name up; that is done in the new root.

use std::{fmt, str::FromStr};

use super::quantity::{TextError, text_form};

/// A user or a group: a name to look up in the image, or a number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Principal {
    /// A name of `/etc/passwd` or `/etc/group`.
    Name(String),
    /// A number, 0 to 4294967294.
    Id(u32),
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Id(id) => id.fmt(f),
        }
    }
}

impl FromStr for Principal {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            // 4294967295 is -1: to the kernel it means "leave as it is".
            return match text.parse() {
                Ok(id) if id != u32::MAX => Ok(Self::Id(id)),
                _ => Err(TextError::new(text, "is not a user or group id (0 to 4294967294)")),
            };
        }
        let mut bytes = text.bytes();
        let first = bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
        if first
            && text.len() <= 64
            && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'$'))
        {
            return Ok(Self::Name(text.to_owned()));
        }
        Err(TextError::new(text, "is not a user or group name"))
    }
}
text_form!(Principal, "^[0-9]+$|^[A-Za-z_][A-Za-z0-9_.$-]{0,63}$", "sandbox");

/// `USER` or `USER:GROUP`, each a name or a number; the form of an image's `User` too.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UserRef {
    /// The user.
    pub user: Principal,
    /// The group; the user's own where not given.
    pub group: Option<Principal>,
}

impl UserRef {
    /// Whether it can only mean uid 0.
    pub fn is_root(&self) -> bool {
        match &self.user {
            Principal::Id(id) => *id == 0,
            Principal::Name(name) => name == "root",
        }
    }
}

impl fmt::Display for UserRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.user.fmt(f)?;
        match &self.group {
            Some(group) => write!(f, ":{group}"),
            None => Ok(()),
        }
    }
}

impl FromStr for UserRef {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        match text.split_once(':') {
            Some((user, group)) => Ok(Self { user: user.parse()?, group: Some(group.parse()?) }),
            None => Ok(Self { user: text.parse()?, group: None }),
        }
    }
}
text_form!(UserRef, "^[A-Za-z0-9_.$-]+(:[A-Za-z0-9_.$-]+)?$", "1000:1000");

/// A signal number of Linux (the same on x86-64 and arm64), 1 to 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signal(i32);

/// Names by number, from 1.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];
/// `SIGRTMIN` as the C libraries count it; the kernel's first two are theirs.
const RTMIN: i32 = 34;

impl Signal {
    /// SIGTERM.
    pub const TERM: Self = Self(15);

    /// The number.
    pub const fn number(self) -> i32 {
        self.0
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = usize::try_from(self.0 - 1).ok().and_then(|index| NAMES.get(index));
        match name {
            Some(name) => write!(f, "SIG{name}"),
            None if self.0 >= RTMIN => write!(f, "SIGRTMIN+{}", self.0 - RTMIN),
            None => self.0.fmt(f),
        }
    }
}

impl FromStr for Signal {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let number = match NAMES.iter().position(|known| *known == name) {
            Some(index) => i32::try_from(index + 1).ok(),
            None if name == "RTMIN" => Some(RTMIN),
            None => match name.strip_prefix("RTMIN+") {
                Some(offset) => offset.parse::<i32>().ok().and_then(|offset| offset.checked_add(RTMIN)),
                None => name.parse::<i32>().ok(),
            },
        };
        number
            .filter(|number| (1..=64).contains(number))
            .map(Self)
            .ok_or_else(|| TextError::new(text, "is not a signal, as in SIGTERM, QUIT, SIGRTMIN+3"))
    }
}
text_form!(Signal, "^[A-Za-z0-9+]+$", "SIGTERM");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_read_and_written_the_same() {
        for text in ["sandbox", "1000", "1000:2000", "www-data:33", "_svc:grp.a"] {
            assert_eq!(text.parse::<UserRef>().unwrap().to_string(), text);
        }
        for text in ["", ":", "a:", ":a", "1:2:3", "4294967295", "a b", "-x", "99999999999", "../x", "a\n"] {
            assert!(text.parse::<UserRef>().is_err(), "{text:?} must be refused");
        }
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number, written) in [
            ("SIGTERM", 15, "SIGTERM"),
            ("quit", 3, "SIGQUIT"),
            ("9", 9, "SIGKILL"),
            ("SIGRTMIN+3", 37, "SIGRTMIN+3"),
            ("RTMIN", 34, "SIGRTMIN+0"),
        ] {
            let signal: Signal = text.parse().unwrap();
            assert_eq!((signal.number(), signal.to_string().as_str()), (number, written));
        }
        for text in ["", "0", "65", "-1", "SIGFOO", "RTMIN+99", "RTMIN+"] {
            assert!(text.parse::<Signal>().is_err(), "{text:?} must be refused");
        }
    }
}
