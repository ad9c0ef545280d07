//! How a generation gets its name: the order of writes, syncs and renames, whatever they are done to.
//!
//! In: a [`Shelf`], the few calls that `generations/` answers. Out: a generation that is whole or not there, and its
//! `confirmed` mark. Must not: name a file system; let a generation have its name before all of it is on disk.
//! `supervisor/src/store/generations.rs` is the shelf of the product, the simulator in `tests/` another one.

use crate::{generation::Record, ids::Generation};

/// The record, beside the others in a generation's folder.
pub const RECORD: &str = "generation.json";
/// The policy's text.
pub const POLICY: &str = "policy.yaml";
/// The mark of a generation that was confirmed once.
pub const CONFIRMED: &str = "confirmed";

/// `generations/`.
pub trait Shelf {
    /// What the kernel answers when it refuses.
    type Error;

    /// Renames `name` away and removes it; nothing if it is not there.
    fn discard(&mut self, name: &str) -> Result<(), Self::Error>;
    /// Makes the folder `name`, with `upper/` and `work/` in it.
    fn make(&mut self, name: &str) -> Result<(), Self::Error>;
    /// Makes and syncs `file` in the folder `name`.
    fn write(&mut self, name: &str, file: &str, bytes: &[u8]) -> Result<(), Self::Error>;
    /// Removes `file` from the folder `name`; nothing if it is not there.
    fn unlink(&mut self, name: &str, file: &str) -> Result<(), Self::Error>;
    /// Syncs the folder `name`.
    fn sync(&mut self, name: &str) -> Result<(), Self::Error>;
    /// Everything in the store is on disk when this returns, layers included.
    fn sync_store(&mut self) -> Result<(), Self::Error>;
    /// Renames the folder `from`.
    fn rename(&mut self, from: &str, to: &str) -> Result<(), Self::Error>;
    /// Syncs `generations/` itself.
    fn sync_names(&mut self) -> Result<(), Self::Error>;
}

/// Makes a generation durable: folders, record, policy; synced before it has its name.
pub fn publish<S: Shelf>(shelf: &mut S, record: &Record, policy: &str) -> Result<(), S::Error> {
    let name = record.generation.to_string();
    let new = format!("{name}.new");
    shelf.discard(&new)?;
    if let Err(error) = fill(shelf, &new, record, policy) {
        // A full disk gets back what this took. What cannot be removed now is not taken for a generation.
        let _ = shelf.discard(&new);
        return Err(error);
    }
    // A folder of that number is generation 0 with another command, or one whose trial was never recorded.
    shelf.discard(&name)?;
    shelf.rename(&new, &name)?;
    shelf.sync_names().inspect_err(|_| {
        // Nobody is told of it, so nobody keeps its layers: the next start must not find it.
        let _ = shelf.discard(&name);
    })
}

fn fill<S: Shelf>(shelf: &mut S, new: &str, record: &Record, policy: &str) -> Result<(), S::Error> {
    shelf.make(new)?;
    let text = serde_json::to_vec_pretty(record).unwrap_or_default();
    shelf.write(new, RECORD, &text)?;
    shelf.write(new, POLICY, policy.as_bytes())?;
    shelf.sync(new)?;
    shelf.sync_store()
}

/// Marks a generation as confirmed, durably.
pub fn mark<S: Shelf>(shelf: &mut S, generation: Generation) -> Result<(), S::Error> {
    let name = generation.to_string();
    shelf.write(&name, CONFIRMED, &[])?;
    shelf.sync(&name)?;
    // Its own name, too, should a sync of it have failed when it was given.
    shelf.sync_names()
}

/// Takes the mark away again, durably: its generation was not confirmed after all.
pub fn unmark<S: Shelf>(shelf: &mut S, generation: Generation) -> Result<(), S::Error> {
    let name = generation.to_string();
    shelf.unlink(&name, CONFIRMED)?;
    shelf.sync(&name)
}
