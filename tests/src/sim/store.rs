//! The product's store over the simulated disk: its journal, its publication order and its recovery, unchanged.
//!
//! In: a [`Disk`]. Out: what `supervisor/src/store` gives the dispatcher. Must not: repeat an order of calls that
//! `molt-core` has.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use molt_core::{
    generation::Record,
    ids::Generation,
    journal::{FILE_BYTES, Journal, JournalError, Medium, Recovered, SLOT_BYTES, Shelved, Slot, recover},
    publish::{CONFIRMED, POLICY, RECORD, Shelf},
};

use super::disk::{Disk, Fault, Node, ROOT, View};

const PROGRAM: &[u8] = b"bytes of the image";

/// One disk, shared by what is on it.
pub type Shared = Rc<RefCell<Disk>>;

/// The journal's file.
#[derive(Debug)]
pub struct File {
    disk: Shared,
    node: Node,
    /// Planted: both slots go to the same place.
    pub same_place: bool,
}

impl File {
    /// Opens it, making it if it is not there.
    pub fn open(disk: &Shared, same_place: bool) -> Result<Self, Fault> {
        let node = disk.borrow_mut().open(ROOT, "journal")?;
        Ok(Self { disk: Rc::clone(disk), node, same_place })
    }
}

impl Medium for File {
    type Error = Fault;

    fn load(&mut self) -> Result<Vec<u8>, Fault> {
        let mut bytes = self.disk.borrow_mut().read(self.node)?;
        bytes.truncate(FILE_BYTES);
        Ok(bytes)
    }

    fn write(&mut self, bytes: &[u8], offset: u64) -> Result<(), Fault> {
        let slot = bytes.len() == SLOT_BYTES && self.same_place;
        let at = if slot { 0 } else { usize::try_from(offset).unwrap() };
        self.disk.borrow_mut().write(self.node, bytes, at)
    }

    fn sync(&mut self) -> Result<(), Fault> {
        self.disk.borrow_mut().sync(self.node)
    }

    fn sync_name(&mut self) -> Result<(), Fault> {
        let mut disk = self.disk.borrow_mut();
        disk.sync(self.node)?;
        disk.sync(ROOT)
    }
}

/// `generations/`.
#[derive(Debug)]
pub struct Folder<'a>(pub &'a mut Disk);

fn top(disk: &mut Disk, name: &str) -> Result<Node, Fault> {
    match disk.find(ROOT, name) {
        Some(node) => Ok(node),
        None => disk.make_folder(ROOT, name),
    }
}

impl Folder<'_> {
    fn all(&mut self) -> Result<Node, Fault> {
        top(self.0, "generations")
    }

    fn one(&mut self, name: &str) -> Result<Node, Fault> {
        let all = self.all()?;
        self.0.find(all, name).ok_or(Fault::Missing)
    }
}

impl Shelf for Folder<'_> {
    type Error = Fault;

    fn discard(&mut self, name: &str) -> Result<(), Fault> {
        let all = self.all()?;
        if self.0.find(all, name).is_none() {
            return Ok(());
        }
        let trash = top(self.0, "trash")?;
        self.0.rename((all, name), (trash, name))?;
        self.0.sync(trash)?;
        self.0.sync(all)?;
        self.0.remove(trash, name)
    }

    fn make(&mut self, name: &str) -> Result<(), Fault> {
        let all = self.all()?;
        let folder = self.0.make_folder(all, name)?;
        self.0.make_folder(folder, "upper")?;
        self.0.make_folder(folder, "work").map(drop)
    }

    fn write(&mut self, name: &str, file: &str, bytes: &[u8]) -> Result<(), Fault> {
        let folder = self.one(name)?;
        let node = self.0.open(folder, file)?;
        self.0.write(node, bytes, 0)?;
        self.0.sync(node)
    }

    fn unlink(&mut self, name: &str, file: &str) -> Result<(), Fault> {
        let folder = self.one(name)?;
        if self.0.find(folder, file).is_some() { self.0.remove(folder, file) } else { Ok(()) }
    }

    fn sync(&mut self, name: &str) -> Result<(), Fault> {
        let folder = self.one(name)?;
        self.0.sync(folder)
    }

    fn sync_store(&mut self) -> Result<(), Fault> {
        self.0.sync_all()
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), Fault> {
        let all = self.all()?;
        self.0.rename((all, from), (all, to))
    }

    fn sync_names(&mut self) -> Result<(), Fault> {
        let all = self.all()?;
        self.0.sync(all)
    }
}

/// As `molt-oci` publishes a layer: everything synced, then its name, then the folder.
pub fn publish_layer(disk: &mut Disk, name: &str) -> Result<(), Fault> {
    let (tmp, layers) = (top(disk, "tmp")?, top(disk, "layers")?);
    if disk.find(layers, name).is_some() {
        return Ok(());
    }
    if disk.find(tmp, name).is_some() {
        disk.remove(tmp, name)?;
    }
    let folder = disk.make_folder(tmp, name)?;
    let node = disk.open(folder, "program")?;
    disk.write(node, PROGRAM, 0)?;
    disk.sync_all()?;
    disk.rename((tmp, name), (layers, name))?;
    disk.sync(layers)
}

/// Removes what no kept generation needs, as `effects/collect` does.
pub fn collect(disk: &mut Disk, going: &[Generation], kept: &BTreeMap<Generation, Record>) -> Result<(), Fault> {
    for number in going {
        Folder(disk).discard(&number.to_string())?;
    }
    let needed: Vec<&str> = kept
        .iter()
        .filter(|(number, _)| !going.contains(number))
        .flat_map(|(_, record)| record.layers.iter().map(|layer| layer.folder.as_str()))
        .collect();
    let (trash, layers) = (top(disk, "trash")?, top(disk, "layers")?);
    for name in disk.names(layers) {
        if !needed.contains(&name.as_str()) {
            disk.rename((layers, &name), (trash, &name))?;
            disk.sync(trash)?;
            disk.sync(layers)?;
            disk.remove(trash, &name)?;
        }
    }
    Ok(())
}

fn record(disk: &mut Disk, folder: Node, number: Generation) -> Result<Option<Record>, Fault> {
    let Some(node) = disk.find(folder, RECORD) else { return Ok(None) };
    let bytes = disk.read(node)?;
    let record: Option<Record> = serde_json::from_slice(&bytes).ok();
    Ok(record.filter(|record| record.generation == number))
}

/// Whether everything that generation `number` needs to run is there.
pub fn whole(view: View<'_>, number: Generation, policy: &str) -> bool {
    let folder = view.find(ROOT, "generations").and_then(|all| view.find(all, &number.to_string()));
    let Some(folder) = folder else { return false };
    let text = |name: &str| view.find(folder, name).and_then(|node| view.bytes(node));
    let record = text(RECORD).and_then(|bytes| serde_json::from_slice::<Record>(bytes).ok());
    let Some(record) = record.filter(|record| record.generation == number) else { return false };
    let layers = view.find(ROOT, "layers");
    let has = |name: &str| {
        let layer = layers.and_then(|layers| view.find(layers, name));
        let program = layer.and_then(|layer| view.find(layer, "program"));
        program.and_then(|node| view.bytes(node)).is_some_and(|bytes| bytes == PROGRAM)
    };
    text(POLICY) == Some(policy.as_bytes())
        && view.find(folder, "upper").is_some()
        && record.layers.iter().all(|layer| has(&layer.folder))
}

/// Whether it has its mark.
pub fn marked(view: View<'_>, number: Generation) -> bool {
    let folder = view.find(ROOT, "generations").and_then(|all| view.find(all, &number.to_string()));
    folder.is_some_and(|folder| view.find(folder, CONFIRMED).is_some())
}

fn shelved_synced(disk: &mut Disk, all: Node) {
    // A failure is only told, as in the product: what runs is better than nothing.
    disk.names_in_doubt = disk.sync(all).is_err();
}

/// As `Store::known`.
pub fn known(disk: &mut Disk) -> Result<(BTreeMap<Generation, Record>, Shelved), Fault> {
    let (mut known, mut shelved) = (BTreeMap::new(), Shelved::default());
    let all = top(disk, "generations")?;
    shelved_synced(disk, all);
    for name in disk.names(all) {
        let Ok(number) = name.parse::<Generation>() else {
            Folder(disk).discard(&name)?;
            continue;
        };
        shelved.highest = shelved.highest.max(number.0);
        let Some(folder) = disk.find(all, &name) else { continue };
        if let Some(record) = record(disk, folder, number)? {
            if marked(disk.cached(), number) {
                shelved.marked = shelved.marked.max(Some(number));
            }
            known.insert(number, record);
        }
    }
    Ok((known, shelved))
}

/// What a start has of its store.
#[derive(Debug)]
pub struct Started {
    /// The open journal.
    pub journal: Journal<File>,
    /// What it begins with.
    pub recovered: Recovered,
    /// What can run.
    pub known: BTreeMap<Generation, Record>,
}

/// As `read_journal` in `supervisor/src/boot.rs`.
pub fn start(disk: &Shared, same_place: bool) -> Result<Started, String> {
    let (known, shelved) = known(&mut disk.borrow_mut()).map_err(|fault| fault.to_string())?;
    let file = File::open(disk, same_place).map_err(|fault| fault.to_string())?;
    let (journal, opened) = Journal::open(file).map_err(|error: JournalError<Fault>| error.to_string())?;
    Ok(Started { journal, recovered: recover(opened, shelved), known })
}

/// What the journal would say to a start that finds this. Changes nothing.
pub fn look(view: View<'_>) -> Option<Slot> {
    let bytes = view.find(ROOT, "journal").and_then(|node| view.bytes(node))?;
    molt_core::journal::read(bytes).ok()?.slot
}
