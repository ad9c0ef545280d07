//! Capabilities, given up for good. capabilities(7).
//!
//! In: what is kept. Out: no set holds more. Must not: touch ids.

use rustix::{
    io::Errno,
    thread::{
        CapabilitiesSecureBits, CapabilitySet, CapabilitySets, capabilities, capabilities_secure_bits,
        capability_is_in_bounding_set, clear_ambient_capability_set, remove_capability_from_bounding_set,
        set_capabilities, set_capabilities_secure_bits,
    },
};

use crate::step::{At as _, Step};

/// Empties the bounding set and locks the secure bits, so that no exec ever gives anything back. Without CAP_SETPCAP
/// both stay as they are.
pub fn drop_bounding_set() -> Step<()> {
    if !bound(CapabilitySet::empty())? {
        return Ok(());
    }
    // Root without a capability stays without across exec.
    let bits = CapabilitiesSecureBits::NO_ROOT
        | CapabilitiesSecureBits::NO_ROOT_LOCKED
        | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
        | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
    match set_capabilities_secure_bits(bits) {
        // Locked by whoever started the container, with what is wanted in force.
        Err(Errno::PERM) if capabilities_secure_bits().at("prctl", "secure bits")?.contains(bits) => Ok(()),
        result => result.at("prctl", "secure bits"),
    }
}

/// Leaves no more than `kept` in the bounding set; false where CAP_SETPCAP is missing, and all of it is left.
pub fn bound(kept: CapabilitySet) -> Step<bool> {
    for number in 0..64u32 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if kept.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // Past the last one this kernel knows; it then says the same when it is only asked.
            Err(Errno::INVAL) if capability_is_in_bounding_set(capability) == Err(Errno::INVAL) => break,
            // No CAP_SETPCAP: whoever reports reads it from /proc/self/status.
            Err(Errno::PERM) if !effective(CapabilitySet::SETPCAP)? => return Ok(false),
            Err(errno) => return Err(errno).at("prctl", format!("drop capability {number}")),
        }
    }
    Ok(true)
}

fn effective(capability: CapabilitySet) -> Step<bool> {
    Ok(capabilities(None).at("capget", "")?.effective.contains(capability))
}

/// Keeps of the capabilities that are there those in `kept`, effective and permitted, and says which these are; none is
/// inheritable or ambient.
pub fn keep(kept: CapabilitySet) -> Step<CapabilitySet> {
    match clear_ambient_capability_set() {
        Ok(()) | Err(Errno::INVAL) => {}
        Err(errno) => return Err(errno).at("prctl", "clear ambient set"),
    }
    let left = if kept.is_empty() { kept } else { capabilities(None).at("capget", "")?.permitted & kept };
    let sets = CapabilitySets { effective: left, permitted: left, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).at("capset", format!("{:#x}", left.bits()))?;
    Ok(left)
}
