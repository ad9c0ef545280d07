//! What asks for changes beside the API. Each turns its source into one event or command.

pub(crate) mod order;
pub(crate) mod signal;
