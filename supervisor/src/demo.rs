//! stub
use std::path::PathBuf;
pub(crate) fn run(_json: bool, _keep: Option<PathBuf>) -> anyhow::Result<u8> { Ok(1) }
