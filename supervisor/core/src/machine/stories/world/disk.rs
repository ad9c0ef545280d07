//! The journal's file, as a disk that loses nothing.
//!
//! In: bytes. Out: the same bytes, to every handle of it. Must not: fail; that is the simulator's.

use std::{cell::RefCell, rc::Rc};

use crate::journal::Medium;

#[derive(Debug, Clone, Default)]
pub(super) struct Disk(pub(super) Rc<RefCell<Vec<u8>>>);

impl Medium for Disk {
    type Error = &'static str;

    fn load(&mut self) -> Result<Vec<u8>, Self::Error> {
        Ok(self.0.borrow().clone())
    }

    fn write(&mut self, bytes: &[u8], offset: u64) -> Result<(), Self::Error> {
        let (at, mut file) = (usize::try_from(offset).unwrap(), self.0.borrow_mut());
        let length = file.len().max(at + bytes.len());
        file.resize(length, 0);
        file[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }

    fn sync_name(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }
}
