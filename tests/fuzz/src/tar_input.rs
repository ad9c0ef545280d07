//! Tar streams to fuzz with: raw ones with mended checksums, and ones written from a short program of bytes.
//!
//! In: fuzzer bytes. Out: a tar stream. Must not: make only valid ones.
//!
//! A program is [`MAGIC`] and eight bytes an entry: kind, two bytes that pick the name, two that pick the target, mode,
//! size, and which records stand before it. Names and targets come from a small set, so that entries meet: a file below a
//! link, a whiteout of a folder, a link to what was replaced.

use std::borrow::Cow;

/// First bytes of a program.
pub(crate) const MAGIC: &[u8] = b"MOPS";
const BLOCK: usize = 512;

/// The tar stream that `data` stands for.
pub(crate) fn expand(data: &[u8]) -> Cow<'_, [u8]> {
    match data.strip_prefix(MAGIC) {
        Some(program) => Cow::Owned(assemble(program)),
        None => Cow::Borrowed(data),
    }
}

/// Gives every block that stands where a header should be a valid checksum.
pub(crate) fn mend(tar: &mut [u8]) {
    if tar.starts_with(MAGIC) {
        return;
    }
    let mut at = 0;
    while let Some(header) = tar.get_mut(at..at + BLOCK) {
        if header.iter().all(|byte| *byte == 0) {
            at += BLOCK;
            continue;
        }
        checksum(header);
        at += BLOCK + size(header).min(tar.len()).next_multiple_of(BLOCK);
    }
}

fn checksum(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn size(header: &[u8]) -> usize {
    let field = &header[124..136];
    if field[0] & 0x80 != 0 {
        return field[1..].iter().fold(0usize, |value, byte| value.wrapping_shl(8) | usize::from(*byte));
    }
    let digits = field.iter().skip_while(|byte| **byte == b' ').take_while(|byte| (b'0'..=b'7').contains(*byte));
    digits.fold(0, |value, digit| value << 3 | usize::from(digit - b'0'))
}

const NAMES: [&str; 16] = [
    "a",
    "b",
    "c",
    "dir",
    "..",
    ".",
    ".wh.a",
    ".wh.dir",
    ".wh..wh..opq",
    "dev",
    "null",
    "link",
    "outside",
    "etc",
    "new\nline",
    "caf\u{e9}",
];
const TARGETS: [&str; 16] = [
    "a",
    "b",
    "dir",
    "../outside",
    "../../outside",
    "/",
    "..",
    "/outside",
    "dir/a",
    "link/a",
    "/proc/self/root",
    "../../../../../../../../tmp",
    "link",
    ".",
    "a/b/c",
    "dir/../../outside",
];
const KINDS: [u8; 16] = [b'0', b'0', b'0', 0, b'1', b'1', b'2', b'2', b'2', b'3', b'4', b'5', b'5', b'6', b'7', b'S'];
const MODES: [u64; 8] = [0o644, 0o755, 0o4755, 0o2775, 0o1777, 0, 0o7777, 0o100_644];

fn assemble(program: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    for op in program.chunks_exact(8).take(64) {
        let [kind, name, more, target, target2, mode, size, before] = *op else { continue };
        let mut path = NAMES[usize::from(name & 15)].to_owned();
        for part in [name >> 4, more & 15, more >> 4].into_iter().take(usize::from(target2 >> 6)) {
            path = format!("{path}/{}", NAMES[usize::from(part)]);
        }
        if kind & 0x40 != 0 {
            path.push('/');
        }
        if kind & 0x80 != 0 {
            path.insert_str(0, "./");
        }
        let link = TARGETS[usize::from(target & 15)].to_owned();
        let kind = KINDS[usize::from(kind & 15)];
        let data = if matches!(kind, b'0' | 0 | b'7') { vec![b'x'; usize::from(size) * 5] } else { Vec::new() };
        let other = || TARGETS[usize::from(target >> 4)];
        let mut records = Vec::new();
        match before & 15 {
            1 => record(&mut records, "path", other().as_bytes()),
            2 => record(&mut records, "linkpath", other().as_bytes()),
            3 => record(&mut records, "size", format!("{}", data.len()).as_bytes()),
            4 => record(&mut records, "size", format!("{}", usize::from(size) * 7).as_bytes()),
            5 => {
                record(&mut records, "uid", b"1000");
                record(&mut records, "gid", b"4294967295");
            }
            6 => record(&mut records, "SCHILY.xattr.user.x", &[size; 7]),
            7 => record(&mut records, "SCHILY.xattr.trusted.overlay.redirect", b"/secret"),
            8 => record(&mut records, "SCHILY.xattr.user.overlay.opaque", b"y"),
            9 => {
                record(&mut records, "path", other().as_bytes());
                record(&mut records, "path", path.as_bytes());
            }
            10 => record(&mut records, "GNU.sparse.name", b"x"),
            11 => record(&mut records, "path", format!("x\n15 size={}\n", size).as_bytes()),
            12 => record(&mut records, "mtime", b"1700000000.5"),
            _ => {}
        }
        if before & 16 != 0 {
            header(&mut tar, "././@LongLink", "", b'L', 0o644, other().as_bytes(), target2);
        }
        if before & 32 != 0 {
            header(&mut tar, "././@LongLink", "", b'K', 0o644, other().as_bytes(), target2);
        }
        if !records.is_empty() {
            header(&mut tar, "pax", "", b'x', 0o644, &records, 0);
        }
        header(&mut tar, &path, &link, kind, MODES[usize::from(mode & 7)], &data, mode >> 3);
    }
    tar.resize(tar.len() + 2 * BLOCK, 0);
    tar
}

/// `LENGTH KEY=VALUE\n`, the length counting itself.
fn record(into: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let length = (1..).map(|digits| rest + digits).find(|length| length.to_string().len() + rest == *length);
    into.extend_from_slice(format!("{} {key}=", length.unwrap_or_default()).as_bytes());
    into.extend_from_slice(value);
    into.push(b'\n');
}

fn header(tar: &mut Vec<u8>, path: &str, link: &str, kind: u8, mode: u64, data: &[u8], id: u8) {
    let mut block = [0u8; BLOCK];
    put(&mut block, 0, 100, path.as_bytes());
    put(&mut block, 100, 8, format!("{mode:07o}").as_bytes());
    put(&mut block, 108, 8, format!("{:07o}", u32::from(id) * 1000).as_bytes());
    put(&mut block, 116, 8, format!("{:07o}", u32::from(id)).as_bytes());
    put(&mut block, 124, 12, format!("{:011o}", data.len()).as_bytes());
    put(&mut block, 136, 12, b"14000000000");
    block[156] = kind;
    put(&mut block, 157, 100, link.as_bytes());
    put(&mut block, 257, 8, if id & 1 == 0 { b"ustar\x0000" } else { b"ustar  \0" });
    put(&mut block, 329, 8, b"0000001");
    put(&mut block, 337, 8, b"0000003");
    checksum(&mut block);
    tar.extend_from_slice(&block);
    tar.extend_from_slice(data);
    tar.resize(tar.len().next_multiple_of(BLOCK), 0);
}

fn put(block: &mut [u8], at: usize, most: usize, text: &[u8]) {
    let length = text.len().min(most);
    block[at..at + length].copy_from_slice(&text[..length]);
}
