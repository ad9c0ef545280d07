//! The journal: two slots as they may be found on a disk; the record of a generation and what confined it.
//!
//! In: a byte that says whether checksums are made right, then the file; or a `generation.json` or `confinement.json`. Out: a panic where what
//! was read is not what is written. Must not: need a valid file.

use molt_core::{
    confined::InForce,
    generation::Record,
    journal::{self, FILE_BYTES, SLOT_BYTES, SlotError},
};

const CRC: std::ops::Range<usize> = 28..32;

pub(super) fn run(data: &[u8]) {
    let Some((how, bytes)) = data.split_first() else { return };
    match how % 4 {
        0 => check(bytes),
        1 => record(bytes),
        // Mended, so that what stands behind the checksum is reached.
        _ => check(&mended(bytes)),
    }
}

/// Two slots of headers and payload, zeros behind, with right checksums.
fn mended(bytes: &[u8]) -> Vec<u8> {
    let mut file = vec![0; FILE_BYTES];
    let (first, second) = match bytes.iter().position(|byte| *byte == 0xff) {
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (bytes, &[][..]),
    };
    for (slot, payload) in file.chunks_exact_mut(SLOT_BYTES).zip([first, second]) {
        let Some((sequence, payload)) = payload.split_first() else { continue };
        let length = payload.len().min(SLOT_BYTES - 32);
        slot[..8].copy_from_slice(b"MOLTJRNL");
        slot[8] = 1;
        slot[16] = *sequence;
        slot[24..28].copy_from_slice(&u32::try_from(length).unwrap_or(0).to_le_bytes());
        slot[32..32 + length].copy_from_slice(&payload[..length]);
        slot[CRC].fill(0);
        let sum = crc32c::crc32c(slot).to_le_bytes();
        slot[CRC].copy_from_slice(&sum);
    }
    file
}

fn check(file: &[u8]) {
    let Ok(read) = journal::read(file) else { return };
    let Some(slot) = read.slot else { return };
    assert!(read.valid > 0);
    match slot.encode() {
        Ok(bytes) => {
            assert_eq!(bytes.len(), SLOT_BYTES);
            let again = journal::read(&bytes).expect("what was written is read");
            assert_eq!((again.slot, again.newer), (Some(slot), None));
        }
        Err(SlotError::TooLarge(_)) => {}
        Err(error) => panic!("{error}"),
    }
}

fn record(bytes: &[u8]) {
    if let Ok(record) = serde_json::from_slice::<Record>(bytes) {
        let text = serde_json::to_vec(&record).expect("a record can be written");
        assert_eq!(serde_json::from_slice::<Record>(&text).expect("and read"), record);
    }
    if let Ok(side) = serde_json::from_slice::<InForce>(bytes) {
        let text = serde_json::to_vec(&side).expect("what was in force can be written");
        assert_eq!(serde_json::from_slice::<InForce>(&text).expect("and read"), side);
    }
}
