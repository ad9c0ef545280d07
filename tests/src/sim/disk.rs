//! A file system that forgets: page cache over disk, and every way in which a crash can leave the two.
//!
//! In: the calls that the store makes. Out: what a file system may answer, and what is left after a kill, a power cut or a
//! restored snapshot. Must not: keep anything that was not synced, unless the dice say so.
//!
//! What was not synced is a list of small operations: a sector of 512 bytes, a length, one name in one folder, one rename.
//! A power cut keeps or loses each of them by itself, in any order of data and metadata: that is more than ext4, xfs or
//! btrfs would do to anybody, and what POSIX allows.

use std::collections::BTreeMap;

use fastrand::Rng;

/// Bytes that a disk writes at once.
const SECTOR: usize = 512;

/// A file or folder.
pub type Node = u32;

/// Why a call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The process is gone: nothing after this call happens.
    Crashed,
    /// ENOSPC.
    NoSpace,
    /// EIO.
    Io,
    /// EROFS.
    ReadOnly,
    /// ENOENT.
    Missing,
    /// ENOTDIR, EISDIR.
    WrongKind,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self, f)
    }
}

/// What is in a node.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Body {
    File(Vec<u8>),
    Folder(BTreeMap<String, Node>),
}

/// One thing that is not on disk yet.
#[derive(Debug, Clone)]
enum Op {
    Sector { node: Node, at: usize, bytes: Vec<u8> },
    Length { node: Node, length: usize },
    Enter { folder: Node, name: String, node: Node },
    Leave { folder: Node, name: String, node: Node },
    Move { from: (Node, String), to: (Node, String), node: Node },
}

impl Op {
    fn concerns(&self, one: Node) -> bool {
        match self {
            Self::Sector { node, .. } | Self::Length { node, .. } => *node == one,
            Self::Enter { folder, .. } | Self::Leave { folder, .. } => *folder == one,
            Self::Move { from, to, .. } => from.0 == one || to.0 == one,
        }
    }
}

type Image = BTreeMap<Node, Body>;

/// How likely what is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Odds {
    /// Out of 1000 calls that need room: ENOSPC.
    pub no_space: u32,
    /// Out of 1000 calls: EIO.
    pub io: u32,
}

/// Something to look at without touching it.
#[derive(Debug, Clone, Copy)]
pub struct View<'a>(&'a Image);

impl<'a> View<'a> {
    /// Looks a name up.
    pub fn find(self, folder: Node, name: &str) -> Option<Node> {
        match self.0.get(&folder) {
            Some(Body::Folder(names)) => names.get(name).copied(),
            _ => None,
        }
    }

    /// All bytes of a file.
    pub fn bytes(self, node: Node) -> Option<&'a [u8]> {
        match self.0.get(&node) {
            Some(Body::File(bytes)) => Some(bytes),
            _ => None,
        }
    }
}

/// The disk and its page cache.
#[expect(clippy::struct_excessive_bools, reason = "independent facts")]
#[derive(Debug, Clone)]
pub struct Disk {
    cache: Image,
    durable: Image,
    pending: Vec<Op>,
    next: Node,
    rng: Rng,
    /// Faults from now on.
    pub odds: Odds,
    /// errors=remount-ro happened.
    pub read_only: bool,
    /// The process dies at this many calls from now.
    pub fuse: Option<u32>,
    /// It died.
    pub crashed: bool,
    /// Planted: syncs of files do nothing.
    pub no_file_sync: bool,
    /// Planted: syncs of folders below the root do nothing.
    pub no_folder_sync: bool,
    /// The last start could not sync the names of the generations.
    pub names_in_doubt: bool,
    /// Calls so far.
    pub calls: u64,
    /// Faults answered so far.
    pub faults: u64,
}

/// The root folder.
pub const ROOT: Node = 0;

impl Disk {
    /// An empty one.
    pub fn new(seed: u64) -> Self {
        let image: Image = [(ROOT, Body::Folder(BTreeMap::new()))].into();
        Self {
            cache: image.clone(),
            durable: image,
            pending: Vec::new(),
            next: 1,
            rng: Rng::with_seed(seed),
            odds: Odds::default(),
            read_only: false,
            fuse: None,
            crashed: false,
            no_file_sync: false,
            no_folder_sync: false,
            names_in_doubt: false,
            calls: 0,
            faults: 0,
        }
    }

    fn tick(&mut self) -> Result<(), Fault> {
        self.calls += 1;
        if let Some(left) = self.fuse.as_mut() {
            if *left == 0 {
                self.crashed = true;
            }
            *left = left.saturating_sub(1);
        }
        if self.crashed { Err(Fault::Crashed) } else { Ok(()) }
    }

    fn change(&mut self, needs_room: bool) -> Result<(), Fault> {
        self.tick()?;
        if self.read_only {
            return Err(Fault::ReadOnly);
        }
        let fault = if needs_room && self.rng.u32(..1000) < self.odds.no_space {
            Fault::NoSpace
        } else if self.rng.u32(..1000) < self.odds.io {
            Fault::Io
        } else {
            return Ok(());
        };
        self.faults += 1;
        Err(fault)
    }

    fn folder(&self, node: Node) -> Result<&BTreeMap<String, Node>, Fault> {
        match self.cache.get(&node) {
            Some(Body::Folder(names)) => Ok(names),
            Some(Body::File(_)) => Err(Fault::WrongKind),
            None => Err(Fault::Missing),
        }
    }

    fn file(&self, node: Node) -> Result<&Vec<u8>, Fault> {
        match self.cache.get(&node) {
            Some(Body::File(bytes)) => Ok(bytes),
            Some(Body::Folder(_)) => Err(Fault::WrongKind),
            None => Err(Fault::Missing),
        }
    }

    fn does(&mut self, op: Op) {
        apply(&mut self.cache, &op);
        self.pending.push(op);
    }

    /// Looks a name up.
    pub fn find(&self, folder: Node, name: &str) -> Option<Node> {
        self.folder(folder).ok()?.get(name).copied()
    }

    /// The names in a folder.
    pub fn names(&self, folder: Node) -> Vec<String> {
        self.folder(folder).map(|names| names.keys().cloned().collect()).unwrap_or_default()
    }

    /// All bytes of a file.
    pub fn read(&mut self, node: Node) -> Result<Vec<u8>, Fault> {
        self.tick()?;
        self.file(node).cloned()
    }

    /// Makes a folder.
    pub fn make_folder(&mut self, folder: Node, name: &str) -> Result<Node, Fault> {
        self.enter(folder, name, Body::Folder(BTreeMap::new()))
    }

    /// Opens a file, making it if it is not there.
    pub fn open(&mut self, folder: Node, name: &str) -> Result<Node, Fault> {
        match self.find(folder, name) {
            Some(node) => self.tick().map(|()| node),
            None => self.enter(folder, name, Body::File(Vec::new())),
        }
    }

    fn enter(&mut self, folder: Node, name: &str, body: Body) -> Result<Node, Fault> {
        self.folder(folder)?;
        self.change(true)?;
        let node = self.next;
        self.next += 1;
        let empty = match &body {
            Body::File(_) => Body::File(Vec::new()),
            Body::Folder(_) => Body::Folder(BTreeMap::new()),
        };
        self.cache.insert(node, body);
        self.durable.insert(node, empty);
        self.does(Op::Enter { folder, name: name.to_owned(), node });
        Ok(node)
    }

    /// Writes in place, or at the end; only the latter needs room. May be cut short by a crash.
    pub fn write(&mut self, node: Node, bytes: &[u8], at: usize) -> Result<(), Fault> {
        let length = self.file(node)?.len();
        self.change(at + bytes.len() > length)?;
        if at + bytes.len() > length {
            self.does(Op::Length { node, length: at + bytes.len() });
        }
        let mut done = 0;
        while done < bytes.len() {
            let end = bytes.len().min((at + done) / SECTOR * SECTOR + SECTOR - at);
            self.does(Op::Sector { node, at: at + done, bytes: bytes[done..end].to_vec() });
            done = end;
        }
        Ok(())
    }

    /// fsync of one file or folder. A failed one leaves the pages clean: what it did not write is never written.
    pub fn sync(&mut self, node: Node) -> Result<(), Fault> {
        let lies = match self.cache.get(&node) {
            Some(Body::File(_)) => self.no_file_sync,
            Some(Body::Folder(_)) => self.no_folder_sync && node != ROOT,
            None => return Err(Fault::Missing),
        };
        self.sync_some(lies, |op| op.concerns(node))
    }

    /// syncfs.
    pub fn sync_all(&mut self) -> Result<(), Fault> {
        self.sync_some(false, |_| true)
    }

    fn sync_some(&mut self, lies: bool, which: impl Fn(&Op) -> bool) -> Result<(), Fault> {
        let failed = self.change(false);
        if lies || matches!(failed, Err(Fault::Crashed | Fault::ReadOnly)) {
            return failed;
        }
        let (these, others) = std::mem::take(&mut self.pending).into_iter().partition(which);
        self.pending = others;
        let these: Vec<Op> = these;
        for op in these {
            if failed.is_ok() || self.rng.bool() {
                apply(&mut self.durable, &op);
            } else if !matches!(op, Op::Sector { .. }) {
                // Only data is forgotten: names and lengths stay in the file system's own journal.
                self.pending.push(op);
            }
        }
        if failed.is_err() && self.rng.u32(..4) == 0 {
            self.read_only = true;
        }
        failed
    }

    /// Renames, over nothing.
    pub fn rename(&mut self, from: (Node, &str), to: (Node, &str)) -> Result<(), Fault> {
        let node = self.find(from.0, from.1).ok_or(Fault::Missing)?;
        self.change(false)?;
        self.does(Op::Move { from: (from.0, from.1.to_owned()), to: (to.0, to.1.to_owned()), node });
        Ok(())
    }

    /// Removes a name and all below it.
    pub fn remove(&mut self, folder: Node, name: &str) -> Result<(), Fault> {
        let node = self.find(folder, name).ok_or(Fault::Missing)?;
        self.change(false)?;
        self.does(Op::Leave { folder, name: name.to_owned(), node });
        Ok(())
    }

    /// The process was killed: the page cache stays.
    pub fn kill(&mut self) {
        self.fuse = None;
        self.crashed = false;
    }

    /// The power went: each thing that was not synced is kept or lost by itself.
    pub fn power_cut(&mut self) {
        let keep = *[0, 0, 300, 500, 800, 1000].get(self.rng.usize(..6)).unwrap_or(&0);
        for op in std::mem::take(&mut self.pending) {
            if self.rng.u32(..1000) < keep {
                apply(&mut self.durable, &op);
            }
        }
        self.remount();
    }

    /// What a power cut that loses everything unsynced would leave.
    pub fn worst(&self) -> View<'_> {
        View(&self.durable)
    }

    /// What a kill would leave.
    pub fn cached(&self) -> View<'_> {
        View(&self.cache)
    }

    fn remount(&mut self) {
        self.cache = self.durable.clone();
        self.read_only = false;
        self.kill();
    }

    /// Spoils a byte, as a dying disk does.
    pub fn rot(&mut self, node: Node, at: usize) {
        // It spoils what is there, and what was on its way there.
        let (these, others) = std::mem::take(&mut self.pending).into_iter().partition(|op| op.concerns(node));
        self.pending = others;
        let these: Vec<Op> = these;
        for op in these {
            apply(&mut self.durable, &op);
        }
        for image in [&mut self.cache, &mut self.durable] {
            if let Some(Body::File(bytes)) = image.get_mut(&node)
                && let Some(byte) = bytes.get_mut(at)
            {
                *byte = byte.wrapping_add(1);
            }
        }
    }
}

fn apply(image: &mut Image, op: &Op) {
    match op {
        Op::Length { node, length } => {
            if let Some(Body::File(file)) = image.get_mut(node) {
                file.resize((*length).max(file.len()), 0);
            }
        }
        Op::Sector { node, at, bytes } => {
            // Data beyond a length that was lost is lost with it.
            if let Some(Body::File(file)) = image.get_mut(node)
                && let Some(place) = file.get_mut(*at..*at + bytes.len())
            {
                place.copy_from_slice(bytes);
            }
        }
        Op::Enter { folder, name, node } => enter(image, *folder, name, *node),
        Op::Leave { folder, name, node } => leave(image, *folder, name, *node),
        Op::Move { from, to, node } => {
            leave(image, from.0, &from.1, *node);
            enter(image, to.0, &to.1, *node);
        }
    }
}

fn enter(image: &mut Image, folder: Node, name: &str, node: Node) {
    if let Some(Body::Folder(names)) = image.get_mut(&folder) {
        names.insert(name.to_owned(), node);
    }
}

fn leave(image: &mut Image, folder: Node, name: &str, node: Node) {
    if let Some(Body::Folder(names)) = image.get_mut(&folder)
        && names.get(name) == Some(&node)
    {
        names.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(disk: &mut Disk) -> Node {
        let node = disk.open(ROOT, "f").unwrap();
        disk.write(node, &[1; 1024], 0).unwrap();
        node
    }

    #[test]
    fn what_is_synced_with_its_name_survives_and_nothing_else_must() {
        let mut disk = Disk::new(1);
        let node = file(&mut disk);
        disk.sync(node).unwrap();
        assert_eq!(disk.worst().find(ROOT, "f"), None, "the name was not synced");
        disk.sync(ROOT).unwrap();
        let found = disk.worst().find(ROOT, "f").unwrap();
        assert_eq!(disk.worst().bytes(found).unwrap(), [1; 1024]);
    }

    #[test]
    fn a_power_cut_tears_writes_between_sectors_and_never_within() {
        let mut torn = 0;
        for seed in 0..200 {
            let mut disk = Disk::new(seed);
            let node = file(&mut disk);
            disk.sync_all().unwrap();
            disk.write(node, &[2; 1024], 0).unwrap();
            disk.power_cut();
            let bytes = disk.read(node).unwrap();
            for sector in bytes.chunks(SECTOR) {
                assert!(sector.iter().all(|byte| *byte == sector[0]));
            }
            torn += usize::from(bytes[0] != bytes[1023]);
        }
        assert!(torn > 20, "{torn}");
    }

    #[test]
    fn a_failed_sync_leaves_pages_that_no_later_one_writes() {
        let mut lost = 0;
        for seed in 0..50 {
            let mut disk = Disk::new(seed);
            let node = file(&mut disk);
            disk.sync_all().unwrap();
            disk.write(node, &[2; 512], 0).unwrap();
            disk.odds.io = 1000;
            assert_eq!(disk.sync(node), Err(Fault::Io));
            disk.odds.io = 0;
            disk.read_only = false;
            disk.sync(node).unwrap();
            assert_eq!(disk.read(node).unwrap()[0], 2, "it still reads as written");
            lost += usize::from(disk.worst().bytes(node).unwrap()[0] == 1);
        }
        assert!(lost > 5, "{lost}");
    }
}
