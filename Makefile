# Entry points for development and CI. CI calls only these targets.

CARGO ?= cargo
# Cargo's target directory as configured for this workspace; evaluated only when a recipe uses it.
TARGET = $(shell $(CARGO) metadata --no-deps --locked --format-version 1 | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
# Tools that are not part of the toolchain are installed here, not in ~/.cargo/bin. Those that run for seconds are built
# without optimization, which is faster.
TOOLS = $(TARGET)/tools
CARGO_DENY_VERSION := 0.20.2
CARGO_TARPAULIN_VERSION := 0.37.5
TYPOS_VERSION := 1.52.0
# Minimum line coverage in percent.
COVERAGE := 85
# Additional arguments of `cargo test` in make test and make test-containers, for example ARGS='--test it messages::'.
ARGS :=
# Defaults of make chaos.
SEED := 1
JOBS := 200
# Default of make fuzz: executions per target.
RUNS := 1000000

.DEFAULT_GOAL := help
.PHONY: help build demo test test-containers test-live chaos fuzz scale dashboard bench check lint prose docs publishable audit coverage fmt \
  packages release dist image push-image clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build all programs
	$(CARGO) build --workspace --bins --locked

# The demo needs few of the programs, and testcontainers only where a Docker engine answers.
DEMO_FEATURES = $(shell docker info >/dev/null 2>&1 && echo --features dev-services/containers)

demo: ## Run two jobs with a broker, the API sandbox and a worker, and show their images
	@echo "Building the worker, the sandbox and the demo; the first time this takes some minutes."
	$(CARGO) build --locked --package asset-worker --package stability-sandbox --package dev-services --bins \
	  --no-default-features $(DEMO_FEATURES)
	@"$(TARGET)/debug/dev-services" demo

test: build ## Run all tests and provide the services they need; ARGS='…' is passed to cargo test
	"$(TARGET)/debug/dev-services" run $(CARGO) test --workspace --locked $(ARGS)

test-containers: build ## Run the black-box and chaos tests with services from a Docker engine only
	"$(TARGET)/debug/dev-services" run --containers $(CARGO) test --workspace --locked --test it --test chaos $(ARGS)

test-live: build ## Generate three images with the real API if STABILITY_API_KEY is set; costs about USD 0.06
	@"$(TARGET)/debug/dev-services" live

chaos: build ## Inject faults while many jobs run, then verify the results; SEED=1 JOBS=200
	@"$(TARGET)/debug/chaos" --seed $(SEED) --jobs $(JOBS)

scale: ## Measure several workers side by side and the cost of telemetry, in release builds
	$(CARGO) build --release --workspace --bins --locked
	@"$(TARGET)/release/dev-services" run "$(TARGET)/release/scale"

dashboard: build ## Render the Grafana dashboard of two workers with injected faults to docs/dashboard.svg
	@"$(TARGET)/debug/dev-services" run "$(TARGET)/debug/dashboard" docs/dashboard.svg

# The libFuzzer instrumentation that cargo-fuzz sets up, with flags that the stable toolchain accepts.
SANCOV := -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
  -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing
HOST = $(shell $(CARGO) -vV | sed -n 's/^host: //p')

fuzz: ## Fuzz the decoding of commands, API responses and images, and the PNG encoder; RUNS=1000000 per target
	RUSTFLAGS="$(SANCOV)" $(CARGO) build -p fuzz --bins --features libfuzzer --profile fuzz --locked \
	  --target "$(HOST)" --target-dir "$(TARGET)/fuzz"
	@set -e; for target in command answer picture encoder; do \
	  mkdir -p "$(TARGET)/fuzz/corpus/$$target" "$(TARGET)/fuzz/found"; echo "fuzz: $$target"; \
	  "$(TARGET)/fuzz/$(HOST)/fuzz/$$target" -runs=$(RUNS) -max_len=4096 -timeout=20 -print_final_stats=1 -verbosity=0 \
	    -artifact_prefix="$(TARGET)/fuzz/found/$$target-" "$(TARGET)/fuzz/corpus/$$target" "fuzz/corpus/$$target"; \
	done

bench: ## Measure the CPU time of a worker for an image, in release builds; ARGS='--profile --baseline PROGRAM'
	$(CARGO) build --release --locked --package asset-worker --package dev-services --package dev-tools --bins
	@"$(TARGET)/release/dev-services" run "$(TARGET)/release/cpu" $(ARGS)
	$(CARGO) bench -p dev-tools --bench picture --locked
	$(CARGO) bench -p stability-client --bench response_format --locked

check: lint docs publishable test audit ## Run all checks that a commit must pass: lint, docs, publishable, test and audit

lint: prose ## Check formatting, lints and prose, and that only their own crates depend on sea-orm and lapin
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	@set -e; for pair in sea-orm:asset-store lapin:asset-broker; do \
	  library=$${pair%%:*}; owner=$${pair##*:}; \
	  users=$$($(CARGO) tree --locked --package asset-worker --edges normal --invert $$library --depth 1 --prefix none | sed -n '2,$$ s/ .*//p'); \
	  others=$$(echo "$$users" | grep -vxE "$$owner|migrations|sea-orm-migration" || true); \
	  test -z "$$others" || { echo "lint: only $$owner may depend on $$library, not:" $$others; exit 1; }; \
	done

# In Markdown, tables, code blocks and the targets of links may be longer than 100 columns.
prose: ## Check spelling, the words of word-list.txt, and the line width of Markdown
	@test -x "$(TOOLS)/bin/typos" || $(CARGO) install --debug typos-cli --locked --version $(TYPOS_VERSION) --root "$(TOOLS)"
	"$(TOOLS)/bin/typos"
	@if grep -vE '^(#|$$)' word-list.txt | git grep -IniwE -f - -- ':!word-list.txt' ':!fuzz/corpus' ':!*/htmx-*.min.js'; then \
	  echo "lint: word-list.txt refuses these words; CONTRIBUTING.md says how to write instead"; exit 1; \
	fi
	@git ls-files '*.md' | xargs awk ' \
	  FNR == 1 { code = 0 } \
	  /^ *```/ { code = !code } \
	  { text = $$0; gsub(/\]\([^)]*\)/, "]", text); gsub(/[^ -~]/, "", text) } \
	  !code && !/^ *\|/ && length(text) > 100 { printf "%s:%d: longer than 100 columns\n", FILENAME, FNR; found = 1 } \
	  END { exit found }'

docs: ## Build the API documentation; warnings are errors
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked

# The feature native-tls needs the headers of OpenSSL.
publishable: ## Check the features of stability-client, and that it can be published with what it depends on
	@set -e; for features in '' rustls tracing $$(pkg-config --exists openssl && echo native-tls); do \
	  RUSTFLAGS="-D warnings" $(CARGO) check --locked --target-dir "$(TARGET)/features" \
	    -p stability-client --no-default-features --features "$$features"; \
	done
	$(CARGO) publish --dry-run --locked --allow-dirty -p asset-retry-after -p stability-client

audit: ## Check dependencies for licences, sources, bans and known vulnerabilities
	@test -x "$(TOOLS)/bin/cargo-deny" || \
	  $(CARGO) install --debug cargo-deny --locked --version $(CARGO_DENY_VERSION) --root "$(TOOLS)"
	"$(TOOLS)/bin/cargo-deny" --locked --log-level error check bans licenses sources
	@if "$(TOOLS)/bin/cargo-deny" --locked --log-level error fetch db >/dev/null 2>&1; then \
	  "$(TOOLS)/bin/cargo-deny" --locked --log-level error check advisories; \
	else \
	  echo "audit: the advisory database cannot be reached; advisories were not checked"; \
	fi

coverage: build ## Measure the line coverage of the tests; fails below 85%
	@test -x "$(TOOLS)/bin/cargo-tarpaulin" || \
	  $(CARGO) install cargo-tarpaulin --locked --version $(CARGO_TARPAULIN_VERSION) --root "$(TOOLS)"
	PATH="$(TOOLS)/bin:$$PATH" "$(TARGET)/debug/dev-services" run \
	  $(CARGO) tarpaulin --target-dir "$(TARGET)/coverage" --output-dir "$(TARGET)/coverage" --fail-under $(COVERAGE)

fmt: ## Format the code
	$(CARGO) fmt --all

packages: ## Install the Debian packages that the tests use; needs root or sudo
	$$(test "$$(id -u)" = 0 || echo sudo) apt-get update -qq
	$$(test "$$(id -u)" = 0 || echo sudo) env DEBIAN_FRONTEND=noninteractive \
	  apt-get install -y -qq --no-install-recommends rabbitmq-server postgresql prometheus curl npm python3-venv \
  chromium-driver

# The version of all programs is that of [workspace.package].
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
DATE = [0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]

release: ## Check that this commit can be released: version, changelog, tag, lock file, clean checkout
	@test -z "$$(git status --porcelain)" || { echo "release: the checkout has uncommitted changes"; exit 1; }
	@$(CARGO) tree --locked --workspace --depth 0 >/dev/null || { echo "release: Cargo.lock is not up to date"; exit 1; }
	@grep -q '^## $(VERSION) - $(DATE)$$' CHANGELOG.md || \
	  { echo "release: CHANGELOG.md has no section '## $(VERSION) - YYYY-MM-DD'; Cargo.toml names version $(VERSION)"; exit 1; }
	@sed -n '/^## Unreleased/,/^## [0-9]/p' CHANGELOG.md | grep -q '^- ' && \
	  { echo "release: CHANGELOG.md still lists unreleased changes"; exit 1; } || true
	@commit=$$(git rev-parse -q --verify 'refs/tags/v$(VERSION)^{commit}' || git rev-parse HEAD); \
	  test "$$commit" = "$$(git rev-parse HEAD)" || { echo "release: the tag v$(VERSION) is at another commit"; exit 1; }
	@echo "release: $(VERSION) is ready; its tag is v$(VERSION)"

dist: ## Build the release archive of the worker with its checksum in target/dist
	$(CARGO) build --release --locked --package asset-worker --bins
	@set -e; name="asset-worker-$(VERSION)-$$(uname -s | tr '[:upper:]' '[:lower:]')-$$(uname -m)"; \
	  rm -rf "$(TARGET)/dist"; mkdir -p "$(TARGET)/dist/$$name"; \
	  cp "$(TARGET)/release/asset-worker" LICENSE README.md CHANGELOG.md deploy/asset-worker.service deploy/phrase-book.json \
	    "$(TARGET)/dist/$$name/"; \
	  cd "$(TARGET)/dist"; program="$$name/asset-worker"; objcopy --only-keep-debug "$$program" "$$program.debug"; \
	  strip "$$program"; objcopy --add-gnu-debuglink="$$program.debug" "$$program"; \
	  tar czf "$$name.tar.gz" "$$name"; rm -r "$$name"; sha256sum "$$name.tar.gz" | tee "$$name.tar.gz.sha256"

# Repository of the container images, for example REGISTRY/asset-worker; the sandbox's has the suffix -sandbox.
IMAGE := asset-worker

image: ## Build the container images of the worker and the sandbox; IMAGE=asset-worker
	docker build -f deploy/Dockerfile --build-arg VERSION=$(VERSION) -t "$(IMAGE):$(VERSION)" .
	docker build -f deploy/Dockerfile --target sandbox -t "$(IMAGE)-sandbox:$(VERSION)" .

push-image: image ## Push the image of the worker; IMAGE=REGISTRY/asset-worker
	docker push "$(IMAGE):$(VERSION)"

clean: ## Remove the build output
	$(CARGO) clean
