# Every way in. CI calls only these targets.

CARGO ?= cargo
# Where Cargo builds, whatever decides it: asked when a target needs it.
TARGET = $(shell $(CARGO) metadata --no-deps --locked --format-version 1 | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
# Tools that are not part of the toolchain are built below it, so that nothing else is touched.
TOOLS = $(TARGET)/tools
CARGO_DENY_VERSION := 0.20.2
CARGO_TARPAULIN_VERSION := 0.37.5
# The least coverage, in percent of lines.
COVERAGE := 85
# For make test, such as ARGS='--test it messages::'
ARGS :=
# For make chaos.
SEED := 1
JOBS := 200
# For make fuzz.
RUNS := 1000000

.DEFAULT_GOAL := help
.PHONY: help build demo test test-containers test-live chaos fuzz scale dashboard bench check lint docs audit coverage fmt clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build every program
	$(CARGO) build --workspace --bins --locked

demo: build ## Do the main job once and show it: broker, sandbox, worker, six pictures
	@"$(TARGET)/debug/dev-services" demo

test: build ## Run every test, with the services they need; ARGS='…' is for cargo test
	"$(TARGET)/debug/dev-services" run $(CARGO) test --workspace --locked $(ARGS)

test-containers: build ## The tests of the whole, with services from a Docker engine and from nowhere else
	"$(TARGET)/debug/dev-services" run --containers $(CARGO) test --workspace --locked --test it --test torture $(ARGS)

test-live: build ## Make three real images where STABILITY_API_KEY is set; about USD 0.06
	@"$(TARGET)/debug/dev-services" live

chaos: build ## Break everything while many jobs run, and look at what came of it; SEED=1 JOBS=200
	@"$(TARGET)/debug/chaos" --seed $(SEED) --jobs $(JOBS)

scale: ## Measure what several workers do side by side, and what telemetry costs, in release builds
	$(CARGO) build --release --workspace --bins --locked
	@"$(TARGET)/release/dev-services" run "$(TARGET)/release/scale"

dashboard: build ## Draw the Grafana dashboard from two workers that have a hard time: docs/dashboard.svg
	@"$(TARGET)/debug/dev-services" run "$(TARGET)/debug/dashboard" docs/dashboard.svg

# libFuzzer's instrumentation, as cargo-fuzz has it, by flags that the stable toolchain knows.
SANCOV := -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
  -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing
HOST = $(shell $(CARGO) -vV | sed -n 's/^host: //p')

fuzz: ## Search for input that breaks what reads it: RUNS=1000000 for each target
	RUSTFLAGS="$(SANCOV)" $(CARGO) build -p fuzz --bins --features libfuzzer --profile fuzz --locked \
	  --target "$(HOST)" --target-dir "$(TARGET)/fuzz"
	@set -e; for target in command answer picture; do \
	  mkdir -p "$(TARGET)/fuzz/corpus/$$target" "$(TARGET)/fuzz/found"; echo "fuzz: $$target"; \
	  "$(TARGET)/fuzz/$(HOST)/fuzz/$$target" -runs=$(RUNS) -max_len=4096 -timeout=20 -print_final_stats=1 -verbosity=0 \
	    -artifact_prefix="$(TARGET)/fuzz/found/$$target-" "$(TARGET)/fuzz/corpus/$$target" "fuzz/corpus/$$target"; \
	done

bench: ## Measure what is decided by measurement
	$(CARGO) bench -p stability-client --bench answers --locked

check: lint docs test audit ## Everything that must pass before a commit lands

lint: ## Check formatting, lints, and that sea-orm and lapin stay in their crates
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	@set -e; for pair in sea-orm:asset-store lapin:asset-broker; do \
	  library=$${pair%%:*}; owner=$${pair##*:}; \
	  users=$$($(CARGO) tree --locked --package asset-worker --edges normal --invert $$library --depth 1 --prefix none | sed -n '2,$$ s/ .*//p'); \
	  others=$$(echo "$$users" | grep -vxE "$$owner|migrations|sea-orm-migration" || true); \
	  test -z "$$others" || { echo "lint: only $$owner may depend on $$library, not:" $$others; exit 1; }; \
	done

docs: ## Build the API documentation; a warning is an error
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked

audit: ## Check licences, sources, bans and known vulnerabilities of dependencies
	@test -x "$(TOOLS)/bin/cargo-deny" || \
	  $(CARGO) install cargo-deny --locked --version $(CARGO_DENY_VERSION) --root "$(TOOLS)"
	"$(TOOLS)/bin/cargo-deny" --locked --log-level error check bans licenses sources
	@if "$(TOOLS)/bin/cargo-deny" --locked --log-level error fetch db >/dev/null 2>&1; then \
	  "$(TOOLS)/bin/cargo-deny" --locked --log-level error check advisories; \
	else \
	  echo "audit: the advisory database cannot be reached; advisories were not checked"; \
	fi

coverage: build ## Measure the lines that tests cover; fails below 85%
	@test -x "$(TOOLS)/bin/cargo-tarpaulin" || \
	  $(CARGO) install cargo-tarpaulin --locked --version $(CARGO_TARPAULIN_VERSION) --root "$(TOOLS)"
	PATH="$(TOOLS)/bin:$$PATH" "$(TARGET)/debug/dev-services" run \
	  $(CARGO) tarpaulin --target-dir "$(TARGET)/coverage" --output-dir "$(TARGET)/coverage" --fail-under $(COVERAGE)

fmt: ## Format the code
	$(CARGO) fmt --all

clean: ## Remove everything that was built
	$(CARGO) clean
