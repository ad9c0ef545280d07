//! An honest unpacker, and a decoder that sends half of a header and ends without a word, but only when the unpacker has
//! long seen the end of its bytes.
//!
//! In: an order as `molt` gives it. Out: status 3. The suites start it in the place of both, to see which of them is told.

use std::{os::fd::IntoRawFd as _, time::Duration};

use molt_sys::process::{exit_now, inherited};
use rustix::net::{RecvFlags, recv};

fn main() {
    let Some(control) = inherited(3) else { exit_now(1) };
    // Looked at and left where it is, with its socket: an unpacker takes it itself.
    let mut order = [0; 4096];
    let length = recv(&control, &mut order[..], RecvFlags::PEEK).map_or(0, |(length, _)| length);
    let _ = control.into_raw_fd();
    let order: serde_json::Value = serde_json::from_slice(order.get(..length).unwrap_or_default()).unwrap_or_default();
    if order.get("job").is_some_and(|job| job == "Unpack") {
        molt_oci::unpacker::run()
    }
    late()
}

fn late() -> ! {
    let Some(control) = inherited(3) else { exit_now(1) };
    let descriptors = molt_sys::socket::receive(&control, &mut Vec::new());
    if rustix::io::write(&control, br#"{"Ready": {"missing": []}}"#).is_err() {
        exit_now(1)
    }
    let descriptors = descriptors.ok().flatten().unwrap_or_default();
    let Some(plain) = descriptors.get(1) else { exit_now(1) };
    if rustix::io::write(plain, b"half of a header").is_err() {
        exit_now(1)
    }
    drop(descriptors);
    std::thread::sleep(Duration::from_millis(300));
    exit_now(3)
}
