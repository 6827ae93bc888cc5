#!/usr/bin/env bash
# need.sh WHAT:PACKAGE[:unpack]... : installs the Debian packages of what is missing. WHAT is a command, or
# a file's path. `unpack` takes the package's files into .cache/tools without installing it: for a package
# that would start a service; PACKAGE may then be A/B, the first that this Debian has. `rust` checks for
# Cargo, which no package here provides.
set -euo pipefail
cd "$(dirname "$0")/../.."

say() { echo "$*" >&2; }

there() {
    case $1 in
        /*) [ -e "$1" ] ;;
        *) command -v "$1" >/dev/null ;;
    esac
}

install=() unpack=()
for need in "$@"; do
    IFS=: read -r what package how <<<"$need"
    if [ "$what" = rust ]; then
        command -v cargo >/dev/null || { say "cargo is missing: install Rust with rustup, then call make again"; exit 1; }
    elif ! there "$what"; then
        if [ "$how" = unpack ]; then unpack+=("$package"); else install+=("$package"); fi
    fi
done
[ ${#install[@]} -gt 0 ] || [ ${#unpack[@]} -gt 0 ] || exit 0

command -v apt-get >/dev/null || { say "missing: ${install[*]} ${unpack[*]}; there is no apt-get here: install them by hand"; exit 1; }
if [ "$(id -u)" = 0 ]; then
    root=()
elif sudo -n true 2>/dev/null || { command -v sudo >/dev/null && [ -t 0 ]; }; then
    root=(sudo)
else
    say "missing: ${install[*]} ${unpack[*]}; run as root: apt-get install ${install[*]} ${unpack[*]}"
    exit 1
fi

# The newest lists may be needed for either; fetching them once is enough.
apt() { "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq "$@" >/dev/null; }
say "getting through apt: ${install[*]}${unpack:+${install:+, and }unpacked into .cache/tools: ${unpack[*]}}"
apt update
[ ${#install[@]} -eq 0 ] || apt install -y --no-install-recommends "${install[@]}"
mkdir -p .cache/tools
# Debian 12 has promtool in the package of Prometheus, Debian 13 in its own.
known() { apt-cache show "$1" >/dev/null 2>&1; }
for names in "${unpack[@]}"; do
    package=${names%%/*}
    known "$package" || package=${names##*/}
    [[ " ${unpacked:-} " != *" $package "* ]] || continue
    unpacked="${unpacked:-} $package"
    # A folder that apt's own user may write to, or it warns.
    folder=$(mktemp -d) && chmod 755 "$folder"
    (cd "$folder" && apt-get -qq -o APT::Sandbox::User="$(id -un)" download "$package" >/dev/null)
    dpkg-deb --extract "$folder"/"$package"_*.deb .cache/tools
    rm -r "$folder"
done
