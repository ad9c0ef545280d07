//! An unpacker that was taken over by the bytes it was given: behind its walls, it puts a file of its own into the folder
//! and claims that this is what unpacks to the `diff_id` which the bytes name.
//!
//! In: an order as `molt` gives it; a blob that is the text of a `diff_id`. Out: a verdict that is a lie. The suites start
//! it in the place of an unpacker.

use std::{error::Error, io};

use molt_oci::{Limits, unpacker::prisoner};
use rustix::fs::{Mode, OFlags, openat};

fn main() {
    molt_sys::process::exit_now(i32::from(lie().is_err()))
}

fn lie() -> Result<(), Box<dyn Error>> {
    let control = molt_sys::process::inherited(3).ok_or("no socket")?;
    let fds = molt_sys::socket::receive(&control, &mut Vec::new())?.ok_or("no order")?;
    let mut fds = fds.into_iter();
    let (folder, packed) = (fds.next().ok_or("no folder")?, fds.next().ok_or("no bytes")?);
    let (folder, _, missing) = prisoner(&control, folder, Vec::new(), &Limits::default())?;
    let say = |said: serde_json::Value| rustix::io::write(&control, said.to_string().as_bytes());
    say(serde_json::json!({"Ready": {"missing": missing}}))?;
    let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        match rustix::io::read(&packed, &mut piece)? {
            0 => break,
            count => bytes.extend(piece.get(..count).unwrap_or_default()),
        }
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    let planted = openat(&folder, "planted", flags, Mode::RUSR.union(Mode::WUSR)).map_err(io::Error::from)?;
    rustix::io::write(&planted, b"not what you asked for")?;
    let claimed = String::from_utf8(bytes)?;
    say(serde_json::json!({"Unpacked": {"plain": claimed, "rest": "Nothing"}}))?;
    Ok(())
}
