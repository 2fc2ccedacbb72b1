# Onggi: containers in Go. `make help` lists what there is to do.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

export CGO_ENABLED := 0
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
# Reproducible: no paths, no build ids, no time of day; the version is the commit's.
LDFLAGS  := -s -w -buildid= -X github.com/onggi/onggi/cli.Version=$(VERSION)
GOBUILD  := go build -trimpath -ldflags '$(LDFLAGS)'
BINARIES := onggi onggi-runtime onggi-build
# Binaries of the test suite have fault points compiled in (build tag faults); the shipped ones have none.
TESTBIN  := .cache/testbin

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: run
run: build ## build onggi/hello from its Dockerfile by onggi, and run it: a container that explains itself (needs root)
	@mkdir -p .cache/hello
	@$(GOBUILD) -o .cache/hello/hello ./cmd/onggi-hello
	@scripts/as-root bin/onggi build -t onggi/hello -f cmd/onggi-hello/Dockerfile --build-arg VERSION=$(VERSION) .cache/hello
	@scripts/as-root bin/onggi run --rm --timing onggi/hello

.PHONY: build
build: cmd/onggi/embedded/hello.tar ## build bin/onggi, bin/onggi-runtime and bin/onggi-build, static
	@scripts/setup build
	@mkdir -p bin
	@for b in $(BINARIES); do $(GOBUILD) -o bin/$$b ./cmd/$$b; done

# Only the Go sources decide whether the embedded image is made again.
cmd/onggi/embedded/hello.tar: $(wildcard cmd/onggi-hello/*.go tools/hello-image/*.go) go.mod
	@scripts/setup build
	@go run ./tools/hello-image -o $@

.PHONY: man
man: build ## write the manual pages to bin/man
	@rm -rf bin/man
	@go run ./tools/manpages -o bin/man

.PHONY: install
install: build man ## copy binaries, manual pages and shell completion to DESTDIR/usr/local
	install -d $(addprefix $(DESTDIR)/usr/local/,bin share/man/man1 share/bash-completion/completions share/zsh/site-functions share/fish/vendor_completions.d)
	install -m 755 $(addprefix bin/,$(BINARIES)) $(DESTDIR)/usr/local/bin
	install -m 644 bin/man/*.1 $(DESTDIR)/usr/local/share/man/man1
	bin/onggi completion bash > $(DESTDIR)/usr/local/share/bash-completion/completions/onggi
	bin/onggi completion zsh > $(DESTDIR)/usr/local/share/zsh/site-functions/_onggi
	bin/onggi completion fish > $(DESTDIR)/usr/local/share/fish/vendor_completions.d/onggi.fish
	install -d $(DESTDIR)/usr/local/lib/systemd/system
	install -m 644 systemd/onggi-resume.service $(DESTDIR)/usr/local/lib/systemd/system

$(TESTBIN): FORCE
	@mkdir -p $@
	@for b in $(BINARIES); do $(GOBUILD) -tags faults -o $@/$$b ./cmd/$$b; done
FORCE:

.PHONY: test
test: ## install what the tests need and run them all (needs root)
	@scripts/setup test
	@$(MAKE) --no-print-directory build $(TESTBIN)
	@scripts/as-root scripts/test

.PHONY: test-unit
test-unit: build ## the packages' own tests only
	@scripts/as-root go test ./...

.PHONY: test-vm
test-vm: build $(TESTBIN) ## the walk in a QEMU guest with cgroup v2, without and with systemd
	@scripts/setup vm
	@scripts/as-root scripts/test-vm

.PHONY: test-arm64
test-arm64: ## the walk of one start on arm64, under full emulation (Debian's arm64 kernel in QEMU)
	@scripts/setup arm64
	@scripts/as-root scripts/test-arm64

.PHONY: soak
SOAK ?= 1000 10000 64
soak: ## 1,000 starts and 10,000 execs of containers, 64 at once: nothing is left, nothing grows (needs root)
	@scripts/as-root env ONGGI_SOAK="$(SOAK)" go test -count 1 -timeout 60m -run '^TestSoak$$' -v ./runtime/launch

.PHONY: conformance
conformance: build ## opencontainers/runtime-tools' validation suite on onggi-runtime (needs root)
	@scripts/as-root scripts/conformance

.PHONY: crash
crash: ## cut the power 1,500 times while the store works, and kill it at each of its steps (needs root, ten minutes)
	@scripts/setup test
	@scripts/as-root env ONGGI_TEST_POWERCUTS=1500 go test ./image -run 'TestPowerLoss|TestFaultsAndKills' -v -timeout 60m | grep -v 'lost, after'

.PHONY: fuzz
FUZZTIME ?= 1m
fuzz: ## every fuzz target for FUZZTIME (1m) each
	@scripts/fuzz $(FUZZTIME)

.PHONY: check
check: build ## gofumpt, vet, staticcheck, doc comments, imports, reproducible build
	@scripts/check

.PHONY: bench
bench: build ## onggi beside runc, crun, podman, docker and containerd: min, median, ratio (needs root)
	@scripts/setup bench
	@scripts/as-root scripts/bench $(BENCH)

.PHONY: leaks
leaks: ## say what a test or a crash has left on this machine: processes, mounts, cgroups, namespaces, rules, files
	@scripts/as-root scripts/leaks

.PHONY: clean
clean: ## remove what was built
	rm -rf bin .cache cmd/onggi/embedded/*.tar
