//! Names that begin with `.wh.`: they hide something of the lower layers and never become files.
//!
//! In: the last component of a name. Out: what it hides, or that it is an ordinary name. Must not: decide where.

/// What a whiteout hides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Whiteout {
    /// This name in the lower layers.
    Name(Vec<u8>),
    /// Everything the lower layers have in the same folder.
    Opaque,
}

/// `.wh..wh..opq` is opaque, `.wh.NAME` hides NAME, `.wh..wh.*` is kept for the format's own use and refused.
pub(crate) fn classify(name: &[u8]) -> Result<Option<Whiteout>, &'static str> {
    let Some(hidden) = name.strip_prefix(b".wh.") else { return Ok(None) };
    match hidden {
        b".wh..opq" => Ok(Some(Whiteout::Opaque)),
        b"" | b"." | b".." => Err("a whiteout that hides nothing, or a folder itself"),
        hidden if hidden.starts_with(b".wh.") => Err("a whiteout name that is reserved"),
        hidden => Ok(Some(Whiteout::Name(hidden.to_vec()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_real_names_can_be_hidden() {
        assert_eq!(classify(b"file"), Ok(None));
        assert_eq!(classify(b".wh.x"), Ok(Some(Whiteout::Name(b"x".to_vec()))));
        assert_eq!(classify(b".wh..x"), Ok(Some(Whiteout::Name(b".x".to_vec()))));
        assert_eq!(classify(b".wh..wh..opq"), Ok(Some(Whiteout::Opaque)));
        for name in [&b".wh."[..], b".wh..", b".wh...", b".wh..wh.plnk", b".wh..wh.x"] {
            assert!(classify(name).is_err(), "{name:?}");
        }
    }
}
