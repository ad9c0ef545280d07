//! Image configs.
//!
//! In: the document. Out: a panic where something that no exec takes came through, or where it does not survive being
//! written to the store and read again. Must not: need valid JSON.

use molt_oci::ImageConfig;

use super::is_plain;

pub(super) fn run(document: &[u8]) {
    match ImageConfig::parse("fuzz", document) {
        Ok((config, _)) => {
            let texts = config.env.iter().chain(&config.entrypoint).chain(&config.cmd).chain(&config.volumes);
            assert!(texts.chain([&config.user, &config.working_dir]).all(|text| !text.contains('\0')));
            assert!(config.env.iter().all(|pair| pair.find('=').is_some_and(|at| at > 0)));
            assert!(!config.os.is_empty() && !config.architecture.is_empty());
            let text = serde_json::to_vec(&config).expect("a config can be written");
            assert_eq!(serde_json::from_slice::<ImageConfig>(&text).expect("and read"), config);
            // What the spec would make of the user must not fail in another way than by being refused.
            if let Err(error) = config.user.parse::<molt_core::spec::UserRef>() {
                is_plain(&error.to_string());
            }
        }
        Err(error) => is_plain(&error.to_string()),
    }
}
