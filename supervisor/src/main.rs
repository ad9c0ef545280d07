//! `molt`: see the library of the same name, which holds all of it.
//!
//! In: arguments. Out: an exit status. Must not: hold code; a program cannot be linked into a fuzz target.

fn main() -> std::process::ExitCode {
    molt::main()
}
