# What people and CI call. Each target installs what it lacks through apt, says so in one line, and does
# nothing twice. `make help` lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

# dev serves demo, tests and daily work, so that nothing compiles twice; PROFILE=release is for installing.
PROFILE ?= dev
TARGET := $(or $(CARGO_TARGET_DIR),target)
BUILT := $(TARGET)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
PROGRAMS := wattmill wattmill-agent wattmill-collector wattmill-worker
DESTDIR ?=

# Tools that are unpacked rather than installed (tests/run/need.sh); nothing on the system changes.
TOOLS := $(CURDIR)/.cache/tools
export PATH := $(PATH):$(TOOLS)/usr/bin:$(TOOLS)/python/bin

# Where the pinned toolchain is there as `stable` only, and cannot be fetched under its own name, take that.
PINNED := $(shell sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
ifeq ($(shell rustup toolchain list 2>/dev/null | grep -c '^$(PINNED)-'),0)
ifneq ($(shell rustup run stable rustc --version 2>/dev/null | grep -c '^rustc $(PINNED) '),0)
export RUSTUP_TOOLCHAIN := stable
endif
endif

# With an example among the targets, Cargo resolves features as for the tests: programs built for the demo
# are then the ones that the tests build, and the other way round.
BUILD := cargo build --workspace --lib --bins --example metrics --profile $(PROFILE)

# Tests of random input that end in the same words (see agent/daemon/src/fuzz.rs).
FUZZERS := nothing_is_invented nothing_is_negative the_ledger_is_the_truth_less_the_gaps

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

.PHONY: demo
demo: build ## a small cluster on this machine trains a model and bills its energy; ARGS=--json for one JSON object
	@bin/wattmill demo $(ARGS)

.PHONY: build
build: rust-needs ## the programs, into bin/
	@$(BUILD)
	@mkdir -p bin
	@for program in $(PROGRAMS); do \
	    if [ -e $(BUILT)/$$program ]; then \
	        ln -f $(BUILT)/$$program bin/$$program 2>/dev/null || cp -u $(BUILT)/$$program bin/; \
	    fi; \
	done

.PHONY: test
test: ## everything that must hold before a change lands, with the time of each step
	@tests/run/steps.sh format clippy doc deny unit shell

.PHONY: check
check: ## the inner loop: format, lints, unit tests
	@tests/run/steps.sh format clippy units

.PHONY: test-full
test-full: build test-needs fuzz ## what is too slow for make test
	@cargo test --workspace --test telemetry --quiet -- --ignored

# FUZZ random trees of sysfs for each backend, changes to NVML's library, and lives of a ledger.
FUZZ ?= 100000
.PHONY: fuzz
fuzz: rust-needs ## random hosts, libraries and lives, 100,000 of each; FUZZ=1000 for fewer
	@WATTMILL_FUZZ=$(FUZZ) cargo test --workspace --lib --quiet -- --nocapture $(FUZZERS)

.PHONY: bench-agent
bench-agent: rust-needs ## what the agent costs its host, beside node_exporter; ARGS="--seconds 60 --rounds 1"
	@tests/run/need.sh prometheus-node-exporter:prometheus-node-exporter:unpack
	@# The agent by itself: built beside the collector, as make build does, it links codecs that that needs.
	@cargo build --quiet --release --package wattmill-collector --package nvml-fake
	@cargo build --quiet --release --package wattmill-it-metering --example bench_agent
	@cargo build --quiet --release --package wattmill-agent
	@target/release/examples/bench_agent $(ARGS)

.PHONY: format
format: rust-needs ## the code is formatted
	@cargo fmt --all --check

.PHONY: clippy
clippy: rust-needs ## no warning of the compiler or clippy
	@cargo clippy --workspace --all-targets --keep-going --quiet -- -D warnings

# With the examples, features are those that clippy checked with: dependencies are not checked twice.
.PHONY: doc
doc: rust-needs ## the code's documentation builds without a warning
	@RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --workspace --lib --examples --keep-going --quiet

.PHONY: deny
deny: rust-needs ## licences, sources and duplicates of the dependencies
	@tests/run/cargo-deny.sh --log-level error check bans licenses sources

.PHONY: advisories
advisories: rust-needs ## known vulnerabilities of the dependencies; fetches the RustSec database
	@tests/run/cargo-deny.sh check advisories

.PHONY: unit
unit: build test-needs ## the tests of all crates
	@if cargo nextest --version >/dev/null 2>&1; then \
	    cargo nextest run --workspace --no-fail-fast; \
	else \
	    cargo test --workspace --no-fail-fast --lib --bins --tests --quiet; \
	fi
	@cargo test --workspace --doc --quiet

.PHONY: units
units: rust-needs ## the tests inside the crates alone: no processes, no services
	@cargo test --workspace --lib --bins --quiet

.PHONY: shell
shell: build test-needs ## units, configurations, rules and dashboards, by their own tools
	@tests/run/packaging.sh

.PHONY: docs
docs: rust-needs ## write the pages that are made from code
	@cargo run --quiet --package wattmill-protocol --example metrics > docs/metrics.md.new
	@mv docs/metrics.md.new docs/metrics.md

.PHONY: install
install: ## bin/, units and example configurations, under DESTDIR; run make build PROFILE=release before
	@tests/run/install.sh "$(DESTDIR)"

.PHONY: clean
clean: ## remove what was built and unpacked
	@cargo clean --quiet
	@rm -rf bin .cache

.PHONY: rust-needs
rust-needs:
	@tests/run/need.sh rust gcc:gcc /usr/include/stdio.h:libc6-dev

.PHONY: test-needs
test-needs:
	@tests/run/need.sh prometheus:prometheus:unpack promtool:promtool/prometheus:unpack jq:jq curl:curl
