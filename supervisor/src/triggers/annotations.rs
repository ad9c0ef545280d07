//! Annotations as the kubelet writes them into a downward API volume: a line each, `key="value"`, the value quoted as Go
//! quotes text (`%q`).
//!
//! In: the whole text of the file. Out: every annotation, or why it is not such a file. Must not: take a part of a file for
//! the whole: a line that cannot be read makes all of it unread.

use std::collections::BTreeMap;

/// Reads the whole file.
pub(crate) fn parse(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut all = BTreeMap::new();
    for (index, line) in text.split('\n').enumerate() {
        if line.is_empty() {
            continue;
        }
        let number = index + 1;
        let (key, quoted) = line.split_once('=').ok_or_else(|| format!("line {number}: is not key=\"value\""))?;
        let value = unquote(quoted).map_err(|why| format!("line {number}: {why}"))?;
        if key.is_empty() || key.chars().any(char::is_control) {
            return Err(format!("line {number}: has no key"));
        }
        if all.insert(key.to_owned(), value).is_some() {
            return Err(format!("line {number}: the key is there twice"));
        }
    }
    Ok(all)
}

/// The text in a quoted one.
fn unquote(quoted: &str) -> Result<String, &'static str> {
    let inner = quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).ok_or("the value is not in quotes")?;
    let mut bytes = Vec::with_capacity(inner.len());
    let mut rest = inner.chars();
    while let Some(c) = rest.next() {
        match c {
            '"' => return Err("a quote in the value is not escaped"),
            '\\' => escape(&mut rest, &mut bytes)?,
            c => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    String::from_utf8(bytes).map_err(|_| "the value is not UTF-8")
}

/// What follows a backslash.
fn escape(rest: &mut std::str::Chars<'_>, into: &mut Vec<u8>) -> Result<(), &'static str> {
    const WRONG: &str = "an escape in the value is not one";
    let plain = match rest.next().ok_or(WRONG)? {
        'a' => 0x07,
        'b' => 0x08,
        't' => b'\t',
        'n' => b'\n',
        'v' => 0x0b,
        'f' => 0x0c,
        'r' => b'\r',
        '\\' => b'\\',
        '"' => b'"',
        'x' => u8::try_from(hex(rest, 2).ok_or(WRONG)?).map_err(|_| WRONG)?,
        wide @ ('u' | 'U') => {
            let value = hex(rest, if wide == 'u' { 4 } else { 8 }).ok_or(WRONG)?;
            let c = char::from_u32(value).ok_or(WRONG)?;
            into.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            return Ok(());
        }
        _ => return Err(WRONG),
    };
    into.push(plain);
    Ok(())
}

fn hex(rest: &mut std::str::Chars<'_>, digits: usize) -> Option<u32> {
    (0..digits).try_fold(0u32, |value, _| Some(value.checked_mul(16)? | rest.next()?.to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kubelet_writes_is_read() {
        let text = "kubernetes.io/config.seen=\"2026-01-02T03:04:05.678Z\"\n\
                    molt.dev/image=\"registry.example.com/acme/daemon:1.5\"\n\
                    molt.dev/policy=\"version: 1\\nname: \\\"a=b\\\"\\t# \\u00e9 \\U0001f980 \\xc3\\xa9 é\"";
        let all = parse(text).unwrap();
        assert_eq!(all["molt.dev/image"], "registry.example.com/acme/daemon:1.5");
        assert_eq!(all["molt.dev/policy"], "version: 1\nname: \"a=b\"\t# é 🦀 é é");
        assert_eq!(parse(&format!("{text}\n")).unwrap(), all);
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn a_part_of_a_file_is_no_file() {
        let text = "a=\"1\"\nmolt.dev/image=\"registry.example.com/acme/daemon:1.5\"";
        for end in 6..text.len() {
            // Cut anywhere but between two lines.
            assert!(parse(&text[..end]).is_err() || text.as_bytes()[end - 1] == b'\n', "{:?}", &text[..end]);
        }
        for wrong in
            ["a", "a=1", "=\"1\"", "a=\"1\"x", "a=\"\"\"", "a=\"\\q\"", "a=\"\\xff\"", "a=\"\\ud800\"", "a=\"\\u12\""]
        {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert!(parse("a=\"1\"\na=\"2\"").unwrap_err().contains("line 2"));
    }
}
