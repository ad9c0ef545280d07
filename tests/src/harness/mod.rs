//! Everything a suite needs to stand on; see [`bed::Bed`] for the way in.

pub mod bed;
pub mod cases;
pub mod certificates;
pub mod chance;
pub mod client;
pub mod disk;
pub mod docs;
pub mod faulty;
pub mod fuse;
pub mod http;
pub mod image;
pub mod images;
pub mod kind;
pub mod memory;
pub mod molt;
pub mod podman;
pub mod process;
pub mod registry;
pub mod runtime;
pub mod snapshot;
pub mod tar;
pub mod tokens;
pub mod tracer;
pub mod userns;
pub mod wait;
pub mod world;
