//! A ptrace engine that follows a sandbox from the outside: what its PID 1 and its shims ask of the kernel, in which
//! role, and how they take it when the kernel says no, or when everything is killed in between.
//!
//! In: a process number and orders. Out: calls by role, injected errors, what the workload is confined by at the very
//! exec, kills at a numbered call. Must not: change what the traced programs see, but for the one fault asked for; a
//! seccomp filter of its own would (`Seccomp_filters`, and the order in which filters answer), so it stops at every call
//! of the processes it follows and of no others.
//!
//! A tracer waits for all its tracees and must not reap somebody else's children: it is a program of its own,
//! `molt-tracer`, and [`handle::Tracer`] is how the suites speak to it.

#[cfg(not(target_arch = "x86_64"))]
compile_error!("the tracer reads and changes the registers of x86-64; port tracer/engine.rs before building here");

pub mod calls;
pub mod engine;
pub mod handle;
pub mod wire;
