# criserver. `make` prints what there is; each recipe of more than a few lines is a script in hack/.
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
GO      := CGO_ENABLED=0 go
# git tells root nothing of a clone that is somebody else's, and go build would fail for that.
export GOFLAGS += -buildvcs=false
export GOTOOLCHAIN ?= auto
export PATH := $(PATH):/usr/local/go/bin

.PHONY: help build run test check lint bench soak clean vm-test critest
help: ## print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-7s  %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build bin/criserver, bin/pause and the network plugins in bin/cni
	@mkdir -p bin/cni
	$(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/criserver ./cmd/criserver
	$(MAKE) --no-print-directory -C pause/src all
	$(GO) build -trimpath -ldflags '-s -w' -o bin/cni/ $$(go list tool | grep '^github.com/containernetworking/plugins/')

run: ## install what is missing, build, serve, and run a first pod; Ctrl-C ends it and cleans up
	@hack/run

test: ## run everything that CI runs: build, lint, unit and root tests, conformance
	@hack/test

check: build lint ## build, lint and unit tests: what to run while working
	$(GO) test $$(go list ./... | grep -v /test/critest)

lint: ## gofmt, go vet, staticcheck, the map of imports, pause with warnings as errors
	@hack/lint

bench: ## measure, beside Debian's containerd + runc where they are installed
	@hack/bench

soak: build ## live lives of pods while criserver is killed all the time; SOAK=1h for longer than ten minutes
	$(GO) test -run Soak ./test/soak -v -timeout 0 -soak $(or $(SOAK),10m) -soak.bin $(CURDIR)/bin

vm-test: ## run tests in guests with cgroup v2, systemd and other kernels; FLAVOURS="minimal systemd" for some
	@go run ./hack/vm test $(FLAVOURS)

critest: ## run Kubernetes' critest, CRITEST=/path/to/it, and write what came of it into docs/conformance.md
	@test -x "$(CRITEST)" || { echo 'make critest CRITEST=/path/to/critest: build it from kubernetes-sigs/cri-tools'; exit 1; }
	@hack/setup test
	CRITEST_UPSTREAM=$(abspath $(CRITEST)) CRITEST_UPSTREAM_PAGE=$(CURDIR)/docs/conformance.md $(GO) test -count=1 -timeout 0 -run '^TestUpstream$$' ./test/critest

clean: ## remove what was built
	rm -rf bin
