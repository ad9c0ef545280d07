//! The switch of test builds (feature `planted`): one fault at a time, named by `MOLT_PLANT`, to see that the tests find
//! it. Without the feature there is no such switch.
//!
//! In: PID 1's environment, once, at its start. Out: the word. The shim gets it as its `argv[0]`; its list is in
//! `shim/src/planted.rs`. Must not: be read by the product.

#[cfg(not(feature = "planted"))]
mod build {
    use std::ffi::CStr;

    /// The shim's `argv[0]`.
    pub(crate) const fn shim_name() -> &'static CStr {
        c"molt-shim"
    }

    /// Reads the switch before the environment is scrubbed.
    pub(crate) const fn remember() {}
}

#[cfg(feature = "planted")]
mod build {
    use std::{
        ffi::{CStr, CString},
        os::unix::ffi::OsStringExt as _,
        sync::LazyLock,
    };

    static PLANT: LazyLock<CString> = LazyLock::new(|| {
        let word = std::env::var_os("MOLT_PLANT").unwrap_or_else(|| "molt-shim".into());
        CString::new(word.into_vec()).unwrap_or_default()
    });

    /// The shim's `argv[0]`: what is planted.
    pub(crate) fn shim_name() -> &'static CStr {
        &PLANT
    }

    /// Reads the switch before the environment is scrubbed.
    pub(crate) fn remember() {
        LazyLock::force(&PLANT);
    }
}

pub(crate) use build::{remember, shim_name};
