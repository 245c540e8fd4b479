//! The `kvik` command.

fn main() {}
