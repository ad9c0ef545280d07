//! What asks for changes beside the API. Each turns its source into one event or command.

pub(crate) mod annotations;
pub(crate) mod files;
pub(crate) mod gateway;
pub(crate) mod order;
pub(crate) mod signal;
pub(crate) mod spec;
