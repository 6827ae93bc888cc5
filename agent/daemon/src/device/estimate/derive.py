#!/usr/bin/env python3
"""Derives table.csv: idle and full-load watts per hardware thread, by class of CPU.

usage: derive.py SPECpower-results.csv [table.csv]

The input is a table of published SPECpower_ssj2008 results, one server (or multi-node system) a row. A class is
a CPU generation, recognised by patterns over the CPU's name; the same patterns, written to the table, later
recognise the CPU of a host. A class's figures are medians over its servers; errors come from leaving each
server out. See docs/estimate.md.
"""

import csv
import re
import statistics
import sys

# Fewest servers whose own leave-one-out errors are worth more than the pooled ones.
ENOUGH_SERVERS = 5

# Class, vendor, patterns over the normalised name; the first row that matches decides. `#` is a digit, `?` a
# letter or digit, `*` anything; `|` separates alternatives. Cloud-only models fall in by position: EPYC 7R32,
# 7B12 and 7V12 end in their generation's digit like 7742. Names in parentheses are those QEMU gives.
CLASSES = [
    ("amd-epyc-naples", "amd", "epyc 7??1|epyc 3??1"),
    ("amd-epyc-rome", "amd", "epyc 7??2|epyc-rome"),
    ("amd-epyc-milan", "amd", "epyc 7??3|epyc-milan"),
    ("amd-opteron-bulldozer", "amd",
     "opteron 62##|opteron 63##|opteron 43##|opteron 42##|opteron 33##|opteron 62xx|opteron 63xx"),
    ("amd-opteron-magny-cours", "amd", "opteron 61##|opteron 41##"),
    ("amd-opteron-k10", "amd",
     "opteron ####|opteron 22xx|opteron 23xx|opteron 24xx"),
    ("intel-xeon-ice-lake", "intel",
     "platinum #3##|gold #3##|silver #3##|bronze #3##|(icelake"),
    ("intel-xeon-cascade-lake", "intel",
     "platinum #2##|gold #2##|silver #2##|bronze #2##|(cascadelake"),
    ("intel-xeon-skylake", "intel",
     "platinum #1##|gold #1##|silver #1##|bronze #1##|(skylake"),
    ("intel-small-2015", "intel",
     "e3-12*v5|e3-12*v6|xeon e-2###|core i?-6###|core i?-7###|core i?-8###|core i?-9###"),
    ("intel-small-haswell", "intel", "e3-12*v3|e3-12*v4|core i?-4###|core i?-5###"),
    ("intel-xeon-broadwell", "intel", "e5-*v4|e7-*v4|(broadwell"),
    ("intel-xeon-haswell", "intel", "e5-*v3|e7-*v3|(haswell"),
    ("intel-xeon-ivy-bridge", "intel", "e5-*v2|e7-*v2|(ivy bridge"),
    ("intel-small-sandy-bridge", "intel",
     "e3-12##|e3-12*v2|core i?-2###|core i?-3###|e312xx"),
    ("intel-xeon-sandy-bridge", "intel", "e5-####|(sandy bridge"),
    ("intel-xeon-nehalem", "intel",
     "?55##|?56##|?65##|?75##|e7-####|?34##|core i3-5##|core i7 6##|nehalem|westmere"),
    ("intel-xeon-core", "intel",
     "?33##|?53##|?54##|?52##|?31##|?32##|?73##|?74##|xeon 30##|xeon 51##|core 2|(penryn|(conroe"),
    ("intel-netburst", "intel", "xeon 3.8ghz|pentium d|xeon 70##|xeon 71##"),
]

# Classes without published servers here. Figures are those of the nearest older class; the error is that which
# such a borrowing makes between neighbouring generations of the data.
BORROWED = [
    ("amd-epyc-genoa-or-newer", "amd", "epyc 9???|epyc 8???|epyc 4???|epyc-genoa|epyc-turin", "amd-epyc-milan"),
    ("intel-xeon-sapphire-rapids-or-newer", "intel",
     "platinum #4##|gold #4##|silver #4##|bronze #4##|platinum #5##|gold #5##|silver #5##|bronze #5##|xeon 6|"
     "xeon max|(sapphirerapids|(emeraldrapids|(graniterapids", "intel-xeon-ice-lake"),
]

# Neighbouring generations of like machines, older first: what a borrowing is measured on.
NEIGHBOURS = [
    ("amd-epyc-naples", "amd-epyc-rome"), ("amd-epyc-rome", "amd-epyc-milan"),
    ("intel-xeon-sandy-bridge", "intel-xeon-ivy-bridge"), ("intel-xeon-ivy-bridge", "intel-xeon-haswell"),
    ("intel-xeon-haswell", "intel-xeon-broadwell"), ("intel-xeon-broadwell", "intel-xeon-skylake"),
    ("intel-xeon-skylake", "intel-xeon-cascade-lake"), ("intel-xeon-cascade-lake", "intel-xeon-ice-lake"),
    ("intel-small-sandy-bridge", "intel-small-haswell"), ("intel-small-haswell", "intel-small-2015"),
]

# A name without a model ("AMD EPYC Processor", "Intel Xeon Processor"): all servers of these classes together.
MODERN_INTEL = ["intel-xeon-skylake", "intel-xeon-cascade-lake", "intel-xeon-ice-lake"]
MODERN_AMD = ["amd-epyc-naples", "amd-epyc-rome", "amd-epyc-milan"]
POOLED = [
    ("intel-unnamed", "intel", "*", MODERN_INTEL),
    ("amd-unnamed", "amd", "*", MODERN_AMD),
    ("unnamed", "", "*", MODERN_INTEL + MODERN_AMD),
]


def normalise(name):
    """Lower case, no trademark signs, no words that say nothing, single spaces: as table.rs does it."""
    name = name.lower().replace("(r)", " ").replace("(tm)", " ")
    return " ".join(word for word in name.split() if word not in ("cpu", "processor"))


def compiled(patterns):
    """One regular expression for alternatives that may start at any word."""
    symbols = {"#": "[0-9]", "?": "[a-z0-9]", "*": ".*"}
    parts = ("".join(symbols.get(c, re.escape(c)) for c in p) for p in patterns.split("|"))
    return re.compile("(?<![a-z0-9])(?:" + "|".join(parts) + ")")


def number(text):
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None  # "NC": found non-compliant by SPEC, without figures


def read_servers(path):
    """Usable rows as (CPU name, idle W per thread, full W per thread, GB per thread), and those refused."""
    servers, refused = [], []
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            name = row["CPU Description"]
            fields = ("Cores", "Total Threads", "Total Memory (GB)", "avg. watts @ 100%", "avg. watts @ active idle")
            cores, threads, memory, full, idle = (number(row[field]) for field in fields)
            if None in (cores, threads, memory, full, idle):
                refused.append((name, "no figures (non-compliant)"))
            elif threads not in (cores, 2 * cores):
                refused.append((name, f"{threads:.0f} threads on {cores:.0f} cores"))
            else:
                servers.append((name, idle / threads, full / threads, memory / threads))
    return servers, refused


def quantile(values, share):
    """Linear interpolation between order statistics."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def half_load(server):
    return (server[1] + server[2]) / 2


def model(servers):
    return (statistics.median(s[1] for s in servers), statistics.median(s[2] for s in servers))


def leave_one_out(servers):
    """Relative errors (idle, full, half load) of each server, predicted from the others of its class."""
    errors = []
    for index, server in enumerate(servers):
        others = servers[:index] + servers[index + 1:]
        if others:
            idle, full = model(others)
            half = (idle + full) / 2
            errors.append((idle / server[1] - 1, full / server[2] - 1, half / half_load(server) - 1))
    return errors


def borrowing_errors(classes):
    """Relative errors at half load of each server, predicted from the class before its own."""
    errors = []
    for older, newer in NEIGHBOURS:
        idle, full = model(classes[older])
        errors += [(idle + full) / 2 / half_load(server) - 1 for server in classes[newer]]
    return errors


def magnitude(errors, share=0.9):
    return quantile([abs(error) for error in errors], share)


def memory_check(classes):
    """Leave-one-out error at half load with and without a term for memory per thread, fitted in each class."""
    plain, with_memory = [], []
    for servers in classes.values():
        if len(servers) < ENOUGH_SERVERS:
            continue
        for index, server in enumerate(servers):
            others = servers[:index] + servers[index + 1:]
            watts, memory = [half_load(s) for s in others], [s[3] for s in others]
            middle = statistics.median(watts)
            plain.append(middle / half_load(server) - 1)
            mean = statistics.fmean(memory)
            spread = sum((m - mean) ** 2 for m in memory)
            slope = sum((m - mean) * w for m, w in zip(memory, watts)) / spread if spread else 0.0
            guess = statistics.fmean(watts) + slope * (server[3] - mean)
            with_memory.append(guess / half_load(server) - 1)
    return plain, with_memory


def row(name, vendor, patterns, servers, count, uncertainty):
    idle, full = model(servers)
    spread = [quantile([s[column] for s in servers], share) for column in (1, 2) for share in (0.1, 0.9)]
    figures = [f"{value:.3f}" for value in (idle, full, *spread)]
    return [name, vendor, patterns, count, *figures, f"{uncertainty:.2f}"]


def derive(servers):
    matchers = [(name, compiled(patterns)) for name, _, patterns in CLASSES]
    classes = {name: [] for name, _, _ in CLASSES}
    left = []
    for server in servers:
        name = normalise(server[0])
        found = next((label for label, matcher in matchers if matcher.search(name)), None)
        if found:
            classes[found].append(server)
        else:
            left.append(server[0])
    errors = {name: leave_one_out(members) for name, members in classes.items()}
    pooled_error = magnitude([e[2] for all_errors in errors.values() for e in all_errors])
    borrowed_error = magnitude(borrowing_errors(classes))
    rows = []
    for name, vendor, patterns, source in BORROWED:
        rows.append(row(name, vendor, patterns, classes[source], 0, borrowed_error))
    for name, vendor, patterns in CLASSES:
        members = classes[name]
        own = magnitude([e[2] for e in errors[name]]) if len(members) >= ENOUGH_SERVERS else pooled_error
        rows.append(row(name, vendor, patterns, members, len(members), own))
    for name, vendor, patterns, sources in POOLED:
        members = [server for source in sources for server in classes[source]]
        own = magnitude([e[2] for e in leave_one_out(members)])
        rows.append(row(name, vendor, patterns, members, len(members), own))
    return rows, classes, errors, left, borrowed_error


def report(rows, classes, errors, left, refused, borrowed_error):
    print(f"{'class':<36}{'n':>4}{'idle':>8}{'full':>8}  median |error| idle, full, half load; p90 half load")
    for name, *_ in CLASSES:
        found = errors[name]
        figures = [magnitude([e[k] for e in found], 0.5) for k in range(3)] if found else [float("nan")] * 3
        p90 = magnitude([e[2] for e in found]) if found else float("nan")
        idle, full = model(classes[name])
        shown = "  ".join(f"{f:6.1%}" for f in figures)
        print(f"{name:<36}{len(classes[name]):>4}{idle:>8.3f}{full:>8.3f}  {shown}  {p90:6.1%}")
    every = [e for found in errors.values() for e in found]
    for k, what in enumerate(("idle", "full load", "half load")):
        column = [e[k] for e in every]
        bias = statistics.median(column)
        print(f"leave-one-out, {what}: median |error| {magnitude(column, 0.5):.1%}, "
              f"p90 {magnitude(column):.1%}, median error {bias:+.1%} ({len(column)} servers)")
    print(f"borrowed from the generation before: p90 |error| {borrowed_error:.1%}")
    plain, with_memory = memory_check(classes)
    print(f"half load without and with a memory term: median |error| {magnitude(plain, 0.5):.1%} and "
          f"{magnitude(with_memory, 0.5):.1%}, p90 {magnitude(plain):.1%} and {magnitude(with_memory):.1%}")
    for name, *_, uncertainty in rows:
        if name.endswith("unnamed"):
            print(f"{name}: p90 |error| {float(uncertainty):.0%}")
    print(f"refused: {len(refused)}; in no class: {sorted(set(left))}")


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    servers, refused = read_servers(sys.argv[1])
    rows, *rest, borrowed_error = derive(servers)
    classes, errors, left = rest
    if len(sys.argv) == 3:
        with open(sys.argv[2], "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["class", "vendor", "patterns", "servers", "idle_watts_per_thread",
                             "full_watts_per_thread", "idle_p10", "idle_p90", "full_p10", "full_p90",
                             "relative_uncertainty"])
            writer.writerows(rows)
    report(rows, classes, errors, left, refused, borrowed_error)


if __name__ == "__main__":
    main()
