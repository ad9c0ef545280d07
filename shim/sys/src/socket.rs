//! Datagrams with descriptors over a SEQPACKET pair. unix(7), SCM_RIGHTS.
//!
//! In: bytes and descriptors. Out: the same on the other side, always CLOEXEC. Must not: accept more than it has room
//! for; a datagram that was cut is an error.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    },
};

use crate::error::{Error, Named as _, Result};

/// Most bytes of one datagram.
pub const MAX_BYTES: usize = 128 << 10;
/// Most descriptors with one datagram.
pub const MAX_FDS: usize = 128;

/// A connected pair, both ends CLOEXEC.
pub fn pair() -> Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .named("socketpair", || "SEQPACKET".to_owned())
}

/// Sends one datagram with descriptors.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
    if bytes.len() > MAX_BYTES || fds.len() > MAX_FDS {
        let detail = format!("{} bytes, {} descriptors", bytes.len(), fds.len());
        return Err(Error::new("sendmsg", detail, Errno::MSGSIZE));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Error::new("sendmsg", format!("{} descriptors", fds.len()), Errno::MSGSIZE));
    }
    loop {
        match sendmsg(&socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            result => return result.map(drop).named("sendmsg", || format!("{} bytes", bytes.len())),
        }
    }
}

/// Receives one datagram; `None` at end of file. `Errno::AGAIN` when the socket is non-blocking and empty.
pub fn receive(socket: impl AsFd, buffer: &mut Vec<u8>) -> Result<Option<Vec<OwnedFd>>> {
    buffer.resize(MAX_BYTES, 0);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut reset = false;
    let message = loop {
        match recvmsg(&socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            // The other side ended with something unread, which the kernel says once, and before what it sent itself.
            Err(Errno::CONNRESET) if !reset => reset = true,
            result => break result.named("recvmsg", String::new)?,
        }
    };
    let mut fds = Vec::new();
    for item in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = item {
            fds.extend(received);
        }
    }
    if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(Error::new("recvmsg", "cut", Errno::MSGSIZE));
    }
    buffer.truncate(message.bytes);
    Ok((message.bytes > 0).then_some(fds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_before_an_end_that_left_something_unread_is_heard() {
        let (ours, theirs) = pair().unwrap();
        send(&ours, b"never read", &[]).unwrap();
        send(&theirs, b"last words", &[]).unwrap();
        drop(theirs);
        let mut heard = Vec::new();
        assert!(receive(&ours, &mut heard).unwrap().is_some());
        assert_eq!(heard, b"last words");
        assert!(receive(&ours, &mut heard).unwrap().is_none());
    }
}
