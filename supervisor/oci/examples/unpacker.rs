//! A program that is an unpacker and nothing else: what the suites of this crate start where Molt starts its own file.

fn main() {
    molt_oci::unpacker::run()
}
