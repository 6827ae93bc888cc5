#!/usr/bin/env bash
# What packages ship is taken by the tools that will read it: units by systemd, configurations by the
# programs, rules by promtool, dashboards by a JSON parser. Closes with "N passed, N failed".
set -uo pipefail
cd "$(dirname "$0")/../.."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
passed=0 failed=0

# holds WHAT COMMAND... : counts it, and shows the command's words where it fails.
holds() {
    local what=$1
    shift
    if "$@" >"$scratch/out" 2>&1; then
        passed=$((passed + 1))
        echo "ok      $what"
    else
        failed=$((failed + 1))
        echo "FAILED  $what"
        sed 's/^/        /' "$scratch/out"
    fi
}

# An example must be taken as it stands, and with every key that it names set. What the host lacks (exit
# status 1) is none of its faults; bad configuration is (78).
takes() {
    local program=$1 config=$2 status=0
    "bin/$program" --config "$config" check || status=$?
    [ "$status" -le 1 ]
}

example() {
    local program=$1 name=$2 folder
    for form in "as it stands" "with every key set"; do
        folder=$(mktemp -d -p "$scratch")
        case $form in
            as*) cp "packaging/$name.toml" "$folder/" ;;
            *) sed 's/^#\([a-z_]* = \)/\1/' "packaging/$name.toml" >"$folder/$name.toml" ;;
        esac
        mkdir "$folder/conf.d"
        # `check` makes the collector's database.
        echo "state_dir = \"$folder/state\"" >"$folder/conf.d/$name-test.toml"
        [ -x "bin/$program" ] || { echo "skipped $name.toml: no bin/$program"; continue; }
        holds "packaging/$name.toml, $form" takes "$program" "$folder/$name.toml"
    done
}

documented() {
    local missing
    missing=$(sed -n 's/^#\([a-z_]*\) = .*/\1/p' "packaging/$1.toml" |
        while read -r key; do grep -q "\`[a-z.]*$key\`" docs/configuration.md || echo "$key"; done)
    [ -z "$missing" ] || { echo "docs/configuration.md lacks: $missing"; return 1; }
}

unit() {
    # Units name installed programs; here they are judged with programs that are there.
    sed 's|^ExecStart=/usr/bin/[a-z-]*|ExecStart=/bin/true|' "$1" >"$scratch/$(basename "$1")"
    systemd-analyze verify --man=no "$scratch/$(basename "$1")" || return 1
    # What it says without failing is a mistake as well, but for words about other units of the host.
    ! systemd-analyze verify --man=no "$scratch/$(basename "$1")" 2>&1 | grep -F "$(basename "$1")"
}

example wattmill-agent agent
example wattmill-collector collector
holds "docs/configuration.md has every key of agent.toml" documented agent
holds "docs/configuration.md has every key of collector.toml" documented collector

if command -v systemd-analyze >/dev/null; then
    for file in packaging/systemd/*; do holds "$file" unit "$file"; done
else
    echo "skipped packaging/systemd: no systemd-analyze here"
fi

if command -v promtool >/dev/null; then
    holds "packaging/prometheus.yml and its rules" promtool check config packaging/prometheus.yml
else
    failed=$((failed + 1))
    echo "FAILED  packaging/prometheus.yml: promtool is missing"
fi
for file in dashboards/*.json; do holds "$file" jq empty "$file"; done

echo "$passed passed, $failed failed"
exit $((failed > 0))
