//! A decoder and an unpacker that were both taken over by the bytes of a layer: behind its walls, the unpacker puts a file of
//! its own into the folder, and the decoder claims that what it sent has the `diff_id` which the bytes name.
//!
//! In: an order as `molt` gives it; a blob that is the text of a `diff_id`. Out: a verdict that is a lie. The suites start
//! it in the place of both.

use std::{error::Error, io, os::fd::OwnedFd};

use molt_oci::{
    Limits,
    unpacker::{prisoner, sealed},
};
use rustix::fs::{Mode, OFlags, openat};
use serde_json::{Value, json};

fn main() {
    molt_sys::process::exit_now(i32::from(lie().is_err()))
}

fn lie() -> Result<(), Box<dyn Error>> {
    let control = molt_sys::process::inherited(3).ok_or("no socket")?;
    let mut order = Vec::new();
    let mut fds = molt_sys::socket::receive(&control, &mut order)?.ok_or("no order")?.into_iter();
    let order: Value = serde_json::from_slice(&order)?;
    let first = fds.next().ok_or("no descriptor")?;
    if order.get("job").is_some_and(|job| job == "Unpack") { plant(&control, first) } else { claim(&control, &first) }
}

fn say(control: &OwnedFd, said: &Value) -> io::Result<()> {
    Ok(rustix::io::write(control, said.to_string().as_bytes()).map(drop)?)
}

/// Whatever it is sent, there is one file.
fn plant(control: &OwnedFd, folder: OwnedFd) -> Result<(), Box<dyn Error>> {
    let (folder, _, missing) = prisoner(control, folder, Vec::new(), &Limits::default())?;
    say(control, &json!({"Ready": {"missing": missing}}))?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    let planted = openat(&folder, "planted", flags, Mode::RUSR.union(Mode::WUSR)).map_err(io::Error::from)?;
    rustix::io::write(&planted, b"not what you asked for")?;
    say(control, &json!({"Unpacked": {"rest": "Nothing"}}))?;
    Ok(())
}

/// Whatever the bytes hash to, it is what they name.
fn claim(control: &OwnedFd, packed: &OwnedFd) -> Result<(), Box<dyn Error>> {
    let missing = sealed(control, &Limits::default())?;
    say(control, &json!({"Ready": {"missing": missing}}))?;
    let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        match rustix::io::read(packed, &mut piece)? {
            0 => break,
            count => bytes.extend(piece.get(..count).unwrap_or_default()),
        }
    }
    let claimed = String::from_utf8(bytes)?;
    say(control, &json!({"Decoded": {"plain": claimed}}))?;
    Ok(())
}
