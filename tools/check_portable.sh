#!/usr/bin/env bash
# Checks that Kvik compiles on processors that have none of its kernels' instruction sets.
#
# A checkout with x86's own code switched off stands for any other architecture: the standard library of another target need
# not be installed for it. Where one is, `cargo check --target aarch64-unknown-linux-gnu` says the same and more.
set -euo pipefail
cd "$(dirname "$0")/.."

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files -z -- Cargo.toml Cargo.lock crates data rustfmt.toml | xargs -0 cp --parents -t "$copy"
grep -rlZ 'target_arch = "x86_64"' "$copy/crates" --include '*.rs' |
    xargs -0 sed -i 's/target_arch = "x86_64"/target_arch = "no_such_architecture"/g'
CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}/portable \
    RUSTFLAGS="${RUSTFLAGS:-} -D warnings -A unexpected_cfgs" \
    cargo check --locked --manifest-path "$copy/Cargo.toml" "$@"
