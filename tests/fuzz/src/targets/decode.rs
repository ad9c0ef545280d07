//! The wrapper around a tar: gzip members, zstd frames, plain bytes; digests, counts and bounds on both sides.
//!
//! In: a byte that picks the packing and the size of reads, then the blob. Out: a panic where a bound does not hold or a
//! digest is not that of the bytes. Must not: let more out than the limits say.

use std::io::BufReader;

use molt_core::ids::{DiffId, Digest};
use molt_oci::{
    Error, Limits,
    fuzzing::{Packing, decode, judge},
};
use sha2::{Digest as _, Sha256};

use super::{is_plain, tar::Pieces};

const MOST: u64 = 1 << 20;

fn digest(bytes: &[u8]) -> Digest {
    Digest::from_bytes(Sha256::digest(bytes).into())
}

pub(super) fn run(data: &[u8]) {
    let Some((how, blob)) = data.split_first() else { return };
    let packing = match how % 3 {
        0 => Packing::Tar,
        1 => Packing::Gzip,
        _ => Packing::Zstd,
    };
    // 8 MiB of window are enough here: what is looked for is not the memory that the limits allow.
    let limits = Limits { layer_bytes: MOST, ratio: 50, ratio_after: 4096, zstd_window_log: 23, ..Limits::default() };
    let step = usize::from(how / 3) * 37 + 1;
    let source = || BufReader::with_capacity(64 + step, Pieces { rest: blob, step });
    let size = blob.len() as u64;
    match decode(source(), packing, &limits) {
        Ok((plain, diff_id)) => {
            let length = plain.len() as u64;
            assert_eq!(diff_id, DiffId(digest(&plain)));
            assert!(length <= MOST, "{length} bytes came out");
            assert!(length <= 4096 || length / size <= 50, "{length} bytes of {size}");
            assert!(packing != Packing::Tar || plain == blob);
            let again = decode(blob, packing, &limits).map(|(again, _)| again);
            assert!(again.is_ok_and(|again| again == plain), "reads of {step} bytes differ");
            let promised = (digest(blob), size, diff_id);
            assert!(judge(source(), packing, &limits, promised).is_ok(), "it is what was promised");
            for lie in [
                (digest(b"another"), size, diff_id),
                (digest(blob), size + 1, diff_id),
                (digest(blob), size, DiffId(digest(b"another"))),
            ] {
                assert!(matches!(judge(source(), packing, &limits, lie), Err(Error::Mismatch { .. })));
            }
        }
        Err(error) => {
            is_plain(&error.to_string());
            // A broken download is told from a bad layer, whatever was found inside.
            let (right, wrong) = (digest(blob), digest(b"another"));
            let judged = |digest| judge(source(), packing, &limits, (digest, size, DiffId(wrong)));
            assert!(matches!(judged(right), Err(Error::Layer { .. })));
            assert!(matches!(judged(wrong), Err(Error::Mismatch { .. })));
        }
    }
}
