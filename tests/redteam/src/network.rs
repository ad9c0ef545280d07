//! Sockets: ways round the ports of a policy, families no workload needs, sockets outside of the generation, the
//! operator's endpoint.
//!
//! In: `RT_OPEN`, a port on 127.0.0.1 that the policy with ports permits, `RT_SHUT`, one that it does not; something
//! listens on both. `RT_ABSTRACT`, an abstract socket of a process outside. Out: what the kernel says. Must not: reach a
//! host.

use std::{
    io::{self, IoSlice},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, OwnedFd},
    os::linux::net::SocketAddrExt as _,
    os::unix::net::{UnixDatagram, UnixListener, UnixStream},
};

use nix::errno::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendFlags, SocketType, connect, ipproto, sendmsg_addr, sendto, socket, sockopt,
};

use crate::{
    aid::{NULL, given, n, sys},
    probe::{Answer, Probe, probe},
    raw::{Arg, call},
};

const FAST_OPEN: SendFlags = SendFlags::from_bits_retain(0x2000_0000);

fn port(name: &str) -> Result<u16, Errno> {
    given(name)?.parse().map_err(|_| Errno::EINVAL)
}

fn local(name: &str) -> Result<SocketAddr, Errno> {
    Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port(name)?)))
}

fn code(code: rustix::io::Errno) -> Errno {
    Errno::from_raw(code.raw_os_error())
}

fn plain(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

fn stream() -> Result<OwnedFd, Errno> {
    socket(AddressFamily::INET, SocketType::STREAM, None).map_err(code)
}

fn tcp(name: &str) -> Answer {
    local(name).and_then(|address| TcpStream::connect(address).map_err(|error| plain(&error))).into()
}

/// An IPv4 address in the clothes of an IPv6 one.
fn mapped(name: &str) -> Answer {
    let address = port(name).map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST.to_ipv6_mapped(), port)));
    address.and_then(|address| TcpStream::connect(address).map_err(|error| plain(&error))).into()
}

fn fast_open_sendto(name: &str) -> Answer {
    let attempt = || sendto(stream()?, b"hello", FAST_OPEN, &local(name)?).map_err(code);
    attempt().into()
}

fn fast_open_sendmsg(name: &str) -> Answer {
    let attempt = || {
        let mut none = SendAncillaryBuffer::default();
        sendmsg_addr(stream()?, &local(name)?, &[IoSlice::new(b"hello")], &mut none, FAST_OPEN).map_err(code)
    };
    attempt().into()
}

fn fast_open_sendmmsg() -> Answer {
    // No message at all: that the flag is looked at is what counts.
    let attempt = || call(libc::SYS_sendmmsg, &mut [n(stream()?.as_raw_fd().into()), NULL, n(0), n(0x2000_0000)]);
    attempt().into()
}

fn fast_open_high_bits() -> Answer {
    let flags = (1 << 40) | 0x2000_0000;
    let attempt = || {
        let fd = stream()?;
        call(libc::SYS_sendto, &mut [n(fd.as_raw_fd().into()), Arg::In(b"x"), n(1), n(flags), NULL, n(0)])
    };
    attempt().into()
}

/// TCP_FASTOPEN_CONNECT: a connect that only remembers the address.
fn fast_open_connect(name: &str) -> Answer {
    const TCP_FASTOPEN_CONNECT: i64 = 30;
    let attempt = || {
        let fd = stream()?;
        let one = 1i32.to_ne_bytes();
        let number = n(fd.as_raw_fd().into());
        call(libc::SYS_setsockopt, &mut [number, n(6), n(TCP_FASTOPEN_CONNECT), Arg::In(&one), n(4)])?;
        connect(&fd, &local(name)?).map_err(code)
    };
    attempt().into()
}

fn own(family: i64, kind: i64, protocol: i64) -> Answer {
    sys(libc::SYS_socket, &mut [n(family), n(kind), n(protocol)])
}

fn pair_of(family: i64, kind: i64, protocol: i64) -> Answer {
    let mut both = [0; 8];
    sys(libc::SYS_socketpair, &mut [n(family), n(kind), n(protocol), Arg::Out(&mut both)])
}

/// A level, a name and a number, on a TCP socket.
fn option(level: i64, name: i64) -> Answer {
    let attempt = || {
        let fd = stream()?;
        let one = 1i32.to_ne_bytes();
        call(libc::SYS_setsockopt, &mut [n(fd.as_raw_fd().into()), n(level), n(name), Arg::In(&one), n(4)])
    };
    attempt().into()
}

/// TCP_ULP: the socket becomes one of another protocol in place.
fn become_another(name: &[u8], high: i64) -> Answer {
    const TCP_ULP: i64 = 31;
    let attempt = || {
        let fd = stream()?;
        let length = i64::try_from(name.len()).unwrap_or(0);
        let number = n(fd.as_raw_fd().into());
        call(libc::SYS_setsockopt, &mut [number, n(high | 6), n(high | TCP_ULP), Arg::In(name), n(length)])
    };
    attempt().into()
}

fn listen_unbound() -> Answer {
    let attempt = || rustix::net::listen(stream()?, 1).map_err(code);
    attempt().into()
}

fn bind(address: impl Into<SocketAddr>) -> Answer {
    TcpListener::bind(address.into()).into()
}

fn datagram(name: &str) -> Answer {
    let attempt = || {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|error| plain(&error))?;
        socket.send_to(b"hello", local(name)?).map_err(|error| plain(&error))
    };
    attempt().into()
}

fn abstract_outside() -> Answer {
    let attempt = || {
        let address = std::os::unix::net::SocketAddr::from_abstract_name(given("RT_ABSTRACT")?);
        UnixStream::connect_addr(&address.map_err(|error| plain(&error))?).map_err(|error| plain(&error))
    };
    attempt().into()
}

fn abstract_datagram_outside() -> Answer {
    let attempt = || {
        let address =
            std::os::unix::net::SocketAddr::from_abstract_name(format!("{}-datagrams", given("RT_ABSTRACT")?));
        let socket = UnixDatagram::unbound().map_err(|error| plain(&error))?;
        socket.send_to_addr(b"hello", &address.map_err(|error| plain(&error))?).map_err(|error| plain(&error))
    };
    attempt().into()
}

/// The state folder, handed to a process outside.
fn pass_on() -> Answer {
    let attempt = || {
        let address = std::os::unix::net::SocketAddr::from_abstract_name(given("RT_ABSTRACT")?);
        let stream =
            UnixStream::connect_addr(&address.map_err(|error| plain(&error))?).map_err(|error| plain(&error))?;
        let folder = std::fs::File::open(crate::aid::STATE).map_err(|error| plain(&error))?;
        send_with(&stream, &folder)
    };
    attempt().into()
}

fn send_with(socket: &impl std::os::fd::AsFd, file: &std::fs::File) -> Result<usize, Errno> {
    use std::{mem::MaybeUninit, os::fd::AsFd as _};
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [file.as_fd()];
    ancillary.push(rustix::net::SendAncillaryMessage::ScmRights(&fds));
    rustix::net::sendmsg(socket, &[IoSlice::new(b"x")], &mut ancillary, SendFlags::NOSIGNAL).map_err(code)
}

fn abstract_own() -> Answer {
    let attempt = || {
        let address = std::os::unix::net::SocketAddr::from_abstract_name(format!("own-{}", std::process::id()))?;
        let _listener = UnixListener::bind_addr(&address)?;
        UnixStream::connect_addr(&address)
    };
    attempt().into()
}

fn path_socket(path: &str) -> Answer {
    UnixStream::connect(path).into()
}

/// Every socket with a path that has Molt's name in it.
fn known_sockets() -> Answer {
    let text = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let paths =
        text.lines().filter_map(|line| line.split_whitespace().nth(7)).filter(|path| path.ends_with("/molt.sock"));
    let reached = paths.filter(|path| UnixStream::connect(path).is_ok());
    Answer::first(reached.map(|_| "reached".to_owned()), "unreachable")
}

fn netlink_write() -> Answer {
    // RTM_NEWLINK for interface 1, flags REQUEST|ACK; the answer is an error message with an errno in it.
    let mut message = vec![32, 0, 0, 0, 16, 0, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0];
    message.extend([0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let attempt = || {
        let fd = socket(AddressFamily::NETLINK, SocketType::RAW, None).map_err(code)?;
        rustix::net::send(&fd, &message, SendFlags::empty()).map_err(code)?;
        let mut answer = [0u8; 256];
        rustix::net::recv(&fd, &mut answer, rustix::net::RecvFlags::empty()).map_err(code)?;
        match answer.get(16..20) {
            Some(&[a, b, c, d]) => match i32::from_ne_bytes([a, b, c, d]) {
                0 => Ok(()),
                number => Err(Errno::from_raw(-number)),
            },
            _ => Err(Errno::EBADMSG),
        }
    };
    attempt().into()
}

macro_rules! family {
    ($id:literal, $why:literal, $family:literal, $kind:literal, $protocol:literal) => {
        probe($id, $why, || own($family, $kind, $protocol))
    };
}

/// Every probe of this file.
pub(crate) const PROBES: &[Probe] = &[
    probe("W55.operator-socket", "not in any generation", || path_socket("/run/molt/molt.sock")),
    probe("W55.operator-socket-in-var-run", "nor by its other path", || path_socket("/var/run/molt/molt.sock")),
    probe("W55.operator-socket-by-init-root", "nor by way of init", || path_socket("/proc/1/root/run/molt/molt.sock")),
    probe("W56.abstract-outside", "an abstract socket has no path that could be hidden", abstract_outside),
    probe("W56.abstract-datagram-outside", "likewise, without a connection", abstract_datagram_outside),
    probe("W56.abstract-own", "its own it may use", abstract_own),
    probe("W58.tcp-open", "a port of the policy", || tcp("RT_OPEN")),
    probe("W58.tcp-shut", "a port that is not in a policy with ports", || tcp("RT_SHUT")),
    probe("W58.tcp-shut-mapped", "by an IPv4 address in an IPv6 socket", || mapped("RT_SHUT")),
    probe("W58.fast-open-sendto-open", "connects without connect(2)", || fast_open_sendto("RT_OPEN")),
    probe("W58.fast-open-sendto-shut", "connects without connect(2)", || fast_open_sendto("RT_SHUT")),
    probe("W58.fast-open-sendmsg-shut", "connects without connect(2)", || fast_open_sendmsg("RT_SHUT")),
    probe("W58.fast-open-sendmmsg", "connects without connect(2)", fast_open_sendmmsg),
    probe("W58.fast-open-high-bits", "the kernel takes 32 bits of the flags; so must the filter", fast_open_high_bits),
    probe("W58.fast-open-connect-shut", "a connect that is put off is still a connect", || {
        fast_open_connect("RT_SHUT")
    }),
    family!("W58.mptcp", "connects past Landlock's rules for TCP", 2, 1, 262),
    family!("W58.mptcp-6", "likewise", 10, 1, 262),
    family!("W58.smc", "connects past Landlock's rules for TCP", 2, 1, 256),
    family!("W58.smc-family", "likewise, by its family", 43, 1, 0),
    family!("W58.sctp", "connects past Landlock's rules for TCP", 2, 1, 132),
    family!("W58.sctp-seqpacket", "likewise", 2, 5, 132),
    family!("W58.sctp-by-kind", "likewise, by the kind of socket, with no protocol named", 2, 5, 0),
    family!("W58.sctp-by-kind-6", "likewise", 10, 5, 0),
    family!("W58.sctp-by-kind-and-flags", "likewise, with flags beside the kind", 2, 0x80805, 0),
    family!(
        "W58.sctp-by-kind-high-bits",
        "the kernel takes 32 bits of the kind; so must the filter",
        2,
        0x1_0000_0005,
        0
    ),
    family!("W58.packets-own", "sockets of this kind that are no network's are ordinary ones", 1, 5, 0),
    probe("W58.pair-inet", "both sockets are made before they are found to be no pair", || pair_of(2, 1, 0)),
    probe("W58.pair-mptcp", "likewise, of a protocol that no socket may have", || pair_of(2, 1, 262)),
    probe("W58.pair-tipc", "likewise, of a family; TIPC makes pairs", || pair_of(30, 5, 0)),
    probe("W58.pair-high-bits", "the kernel takes 32 bits of the family; so must the filter", || {
        pair_of(0x1_0000_0002, 1, 0)
    }),
    probe("W58.become-smc", "a TCP socket made one of SMC connects past Landlock's rules for TCP", || {
        become_another(b"smc", 0)
    }),
    probe("W58.become-mptcp", "likewise of MPTCP", || become_another(b"mptcp", 0)),
    probe("W58.become-tls", "TLS in the kernel goes the same way; libraries do without", || become_another(b"tls", 0)),
    probe("W58.become-smc-high-bits", "the kernel takes 32 bits of level and name; so must the filter", || {
        become_another(b"smc", 1 << 40)
    }),
    family!("W58.packet", "reads the wire", 17, 3, 0),
    family!("W58.packet-datagrams", "likewise", 17, 2, 0x0300),
    family!("W58.vsock", "talks to the hypervisor", 40, 1, 0),
    family!("W58.bluetooth", "never reviewed for this", 31, 3, 1),
    family!("W58.alg", "kernel crypto, with a history of faults", 38, 5, 0),
    family!("W58.xdp", "reads the wire", 44, 3, 0),
    family!("W58.can", "never reviewed for this", 29, 3, 1),
    family!("W58.tipc", "never reviewed for this", 30, 5, 0),
    family!("W58.rds", "never reviewed for this", 21, 5, 0),
    family!("W58.key", "IPsec's keys", 15, 3, 2),
    family!("W58.rxrpc", "never reviewed for this", 33, 2, 2),
    family!("W58.netlink-sock-diag", "everybody's sockets", 16, 3, 4),
    family!("W58.netlink-xfrm", "IPsec", 16, 3, 6),
    family!("W58.netlink-audit", "the host's audit", 16, 3, 9),
    family!("W58.netlink-netfilter", "the firewall, with a history of faults", 16, 3, 12),
    family!("W58.netlink-uevent", "the host's devices", 16, 3, 15),
    family!("W58.netlink-generic", "dozens of kernel interfaces", 16, 3, 16),
    family!("W58.family-high-bits", "the kernel takes 32 bits of the family; so must the filter", 0x1_0000_0011, 3, 0),
    family!("W58.netlink-protocol-high-bits", "likewise of the protocol", 16, 3, 0x1_0000_000c),
    family!("W58.raw-icmp", "CAP_NET_RAW", 2, 3, 1),
    family!("W58.raw-any", "CAP_NET_RAW", 2, 3, 255),
    probe("W58.netlink-route-write", "reading routes is allowed, changing them needs a capability", netlink_write),
    probe("W58.mark", "routes past the policy: CAP_NET_ADMIN", || option(1, 36)),
    probe("W58.repair", "makes connections that never were: CAP_NET_ADMIN", || option(6, 19)),
    probe("W58.transparent", "binds to addresses of others: CAP_NET_ADMIN", || option(0, 19)),
    probe("W58.receive-buffer-force", "takes the host's memory: CAP_NET_ADMIN", || option(1, 33)),
    probe("W58.bind-any-port", "accepted: a port that nobody was told of is no way out", || {
        bind((Ipv4Addr::LOCALHOST, 0))
    }),
    probe("W58.listen-unbound", "accepted: likewise, by listen alone", listen_unbound),
    probe("W58.datagram", "accepted: UDP is the egress proxy's, until Landlock has rules for it", || {
        datagram("RT_SHUT")
    }),
    probe("W58.no-delay", "an ordinary option", || {
        let attempt = || sockopt::set_tcp_nodelay(stream()?, true).map_err(code);
        attempt().into()
    }),
    probe("W58.tcp-6", "IPv6 sockets are ordinary ones", || {
        socket(AddressFamily::INET6, SocketType::STREAM, Some(ipproto::TCP)).into()
    }),
    probe("W58.udp-6", "likewise", || UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).into()),
    probe(
        "E89.sockets-of-the-container",
        "the table of the shared network names the operator's socket; no path leads to it",
        known_sockets,
    ),
    probe("E94.credentials-forged", "ids that are not one's own, on a socket pair", || {
        let attempt = || {
            let (a, b) = UnixDatagram::pair()?;
            sockopt::set_socket_passcred(&b, true)?;
            forged(&a)
        };
        attempt().into()
    }),
    probe("E95.token-of-the-container", "accepted: the container's own mounts are carried; the policy decides", || {
        std::fs::read("/run/secrets/token").into()
    }),
    probe("Q85.state-passed-on", "a descriptor of the state given to a process outside outlives the update", pass_on),
];

/// SCM_CREDENTIALS of root.
fn forged(socket: &UnixDatagram) -> io::Result<usize> {
    use std::mem::MaybeUninit;
    let root = rustix::net::UCred {
        pid: rustix::process::Pid::INIT,
        uid: rustix::process::Uid::ROOT,
        gid: rustix::process::Gid::ROOT,
    };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(rustix::net::SendAncillaryMessage::ScmCredentials(root));
    Ok(rustix::net::sendmsg(socket, &[IoSlice::new(b"x")], &mut ancillary, SendFlags::NOSIGNAL)?)
}

/// The same, to the notify socket: used by `processes`.
pub(crate) fn forged_to(path: &str) -> Answer {
    let attempt = || {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        forged(&socket)
    };
    attempt().into()
}

/// A descriptor to the notify socket: used by `processes`.
pub(crate) fn descriptor_to(path: &str) -> Answer {
    let attempt = || {
        let socket = UnixDatagram::unbound().map_err(|error| plain(&error))?;
        socket.connect(path).map_err(|error| plain(&error))?;
        let file = std::fs::File::open("/dev/null").map_err(|error| plain(&error))?;
        send_with(&socket, &file)
    };
    attempt().into()
}
