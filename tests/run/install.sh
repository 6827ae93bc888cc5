#!/usr/bin/env bash
# install.sh DESTDIR : puts what `make build` built, and all that runs it as a service, where packages would.
# Configuration that is there already stays.
set -euo pipefail
cd "$(dirname "$0")/../.."
to=${1:-}

ls bin/wattmill-* >/dev/null 2>&1 || { echo "bin/ is empty: run make build PROFILE=release first" >&2; exit 1; }
install -D -m 755 -t "$to/usr/bin" bin/wattmill*
install -D -m 644 -t "$to/usr/lib/systemd/system" packaging/systemd/*
install -D -m 644 -t "$to/usr/lib/sysusers.d" packaging/sysusers.d/wattmill.conf
install -D -m 644 -t "$to/usr/lib/udev/rules.d" packaging/udev/60-wattmill.rules
install -D -m 644 -t "$to/usr/share/wattmill" tests/fixtures/digits.csv.gz packaging/prometheus.yml \
    packaging/alerts.yml dashboards/*.json
# The digits' licence asks that their authors are named.
install -D -m 644 tests/fixtures/README.md "$to/usr/share/doc/wattmill/data.md"
install -D -m 644 -t "$to/usr/share/wattmill/jobs" jobs/*.toml
for config in agent.toml collector.toml; do
    [ -e "$to/etc/wattmill/$config" ] || install -D -m 644 -t "$to/etc/wattmill" "packaging/$config"
done
[ -z "$to" ] || exit 0

systemd-sysusers wattmill.conf
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    udevadm control --reload && udevadm trigger --subsystem-match=powercap --action=change
fi
echo "Installed. On the collector's host: systemctl enable --now wattmill-collector"
echo "On every node: set collector in /etc/wattmill/agent.toml, wattmill-agent check, systemctl enable --now wattmill-agent"
