//! Durations and byte sizes as people write them.
//!
//! In: `1h30m`, `256MiB`. Out: whole milliseconds, whole bytes. Must not: take a number without its unit.

use std::{fmt, str::FromStr, time::Duration};

/// Serde by text, and a schema that is a string.
macro_rules! text_form {
    ($name:ident, $pattern:literal, $example:literal) => {
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                <String as serde::Deserialize>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({"type": "string", "pattern": $pattern, "examples": [$example]})
            }
        }
    };
}
pub(super) use text_form;

/// Text that is not what it should be; the message reads after the path of the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TextError(pub(super) String);

impl TextError {
    pub(super) fn new(text: &str, why: &str) -> Self {
        let text: String = text.chars().take(200).collect();
        Self(format!("'{}' {why}", text.escape_debug()))
    }
}

/// A duration in whole milliseconds, at most 366 days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Span(u64);

impl Span {
    const UNITS: [(&'static str, u64); 5] =
        [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
    const MAX: u64 = 366 * 86_400_000;

    /// From milliseconds; more than 366 days are 366 days.
    pub const fn from_millis(millis: u64) -> Self {
        Self(if millis > Self::MAX { Self::MAX } else { millis })
    }

    /// From seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self::from_millis(seconds.saturating_mul(1000))
    }

    /// Milliseconds.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// As the standard library has it.
    pub const fn as_duration(self) -> Duration {
        Duration::from_millis(self.0)
    }

    /// Whether it is no time at all.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        span.as_duration()
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0s");
        }
        let mut rest = self.0;
        for (unit, size) in Self::UNITS {
            // Days are read but not written: `25h` says more than `1d1h`.
            if unit != "d" && rest >= size {
                write!(f, "{}{unit}", rest / size)?;
                rest %= size;
            }
        }
        Ok(())
    }
}

impl FromStr for Span {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        let refuse = || TextError::new(text, "is not a duration, as in 100ms, 2s, 5m, 1h30m");
        let mut rest = text;
        let mut total = 0u64;
        let mut units = Self::UNITS.iter();
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (number, tail) = rest.split_at_checked(digits).ok_or_else(refuse)?;
            let letters = tail.bytes().take_while(u8::is_ascii_alphabetic).count();
            let (name, tail) = tail.split_at_checked(letters).ok_or_else(refuse)?;
            let number: u64 = number.parse().map_err(|_| refuse())?;
            // Units go down, each at most once.
            let (_, size) = units.find(|(unit, _)| *unit == name).ok_or_else(refuse)?;
            total = number.checked_mul(*size).and_then(|part| total.checked_add(part)).ok_or_else(refuse)?;
            rest = tail;
        }
        if text.is_empty() {
            return Err(refuse());
        }
        if total > Self::MAX {
            return Err(TextError::new(text, "is longer than 366d"));
        }
        Ok(Self(total))
    }
}
text_form!(Span, "^([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$", "1h30m");

/// A size in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bytes(pub u64);

impl Bytes {
    const UNITS: [(&'static str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

    /// From mebibytes.
    pub const fn from_mib(mib: u64) -> Self {
        Self(mib.saturating_mul(1 << 20))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, size) in Self::UNITS {
            if self.0 >= size && self.0.is_multiple_of(size) {
                return write!(f, "{}{unit}", self.0 / size);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl FromStr for Bytes {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        let refuse = || TextError::new(text, "is not a size, as in 512KiB, 256MiB, 2GiB");
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at_checked(digits).ok_or_else(refuse)?;
        let number: u64 = number.parse().map_err(|_| refuse())?;
        // `256Mi`, as Kubernetes writes it, is the same.
        let size = Self::UNITS
            .iter()
            .find(|(name, _)| *name == unit || name.strip_suffix('B') == Some(unit))
            .map(|(_, size)| *size)
            .or((unit == "B").then_some(1))
            .ok_or_else(refuse)?;
        number.checked_mul(size).map(Self).ok_or_else(refuse)
    }
}
text_form!(Bytes, "^[0-9]+(B|[KMGT]iB?)$", "256MiB");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written_the_same() {
        for (text, millis, written) in [
            ("100ms", 100, "100ms"),
            ("2s", 2000, "2s"),
            ("1h30m", 5_400_000, "1h30m"),
            ("90s", 90_000, "1m30s"),
            ("0s", 0, "0s"),
            ("1d", 86_400_000, "24h"),
            ("1s500ms", 1500, "1s500ms"),
        ] {
            let span: Span = text.parse().unwrap();
            assert_eq!((span.as_millis(), span.to_string().as_str()), (millis, written), "{text}");
        }
        for text in ["", "5", "s", "1m1m", "1s1m", "-1s", "1.5s", "1 s", "400d", "99999999999999999999s", "1min", "5é"]
        {
            assert!(text.parse::<Span>().is_err(), "{text:?} must be refused");
        }
    }

    #[test]
    fn sizes_are_read_and_written_the_same() {
        for (text, bytes, written) in
            [("256MiB", 256 << 20, "256MiB"), ("1Gi", 1 << 30, "1GiB"), ("1000B", 1000, "1000B"), ("0B", 0, "0B")]
        {
            let size: Bytes = text.parse().unwrap();
            assert_eq!((size.0, size.to_string().as_str()), (bytes, written), "{text}");
        }
        for text in ["", "256", "MiB", "1MB", "1.5GiB", "-1B", "99999999999TiB"] {
            assert!(text.parse::<Bytes>().is_err(), "{text:?} must be refused");
        }
    }
}
