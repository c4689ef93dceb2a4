# `make` builds; `make help` lists the rest.

PREFIX  ?= /usr/local
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
BINARY  := bin/gitlab-sardine-executor

# Tests that boot machines share the processors with each other badly.
GOTEST := go test -count=1 -timeout 60m

.DEFAULT_GOAL := build
.PHONY: help deps build guest demo test test-full test-faults bench bench-oci lint install

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

deps: ## install the Debian packages that are missing
	@scripts/deps.sh

build: ## build bin/gitlab-sardine-executor
	go build -ldflags '-X main.version=$(VERSION)' -o $(BINARY) ./cmd/gitlab-sardine-executor

guest: ## make the test guest from Debian packages, once
	@scripts/build-guest.sh

demo: deps build guest ## push the test guest to a registry and run a job in it
	@scripts/demo.sh

test: deps guest ## run every test, end to end ones included
	$(GOTEST) ./...

test-full: deps guest ## boot a whole Debian with cloud-init: 5 minutes where it is emulated
	TESTBED_FULL_GUEST=$$(scripts/build-full-guest.sh) $(GOTEST) -run '^TestFullGuest$$' ./vm/boottest

test-faults: deps guest ## kill each part at each moment of a job: docs/reliability.md
	$(GOTEST) ./e2e -run TestFaults -faults -v

bench: deps build guest ## measure against virsh, ssh, skopeo
	go test -run '^$$' -bench . -benchtime 1x -timeout 60m ./...

bench-oci: deps ## measure pulls of a gigabyte against skopeo and gzip
	go run ./oci/bench

lint: ## gofmt and go vet
	@unformatted=$$(gofmt -l .); [ -z "$$unformatted" ] || { echo "gofmt wants to change: $$unformatted"; exit 1; }
	go vet ./...

install: build ## install to $(PREFIX)/bin
	install -D -m 755 $(BINARY) $(DESTDIR)$(PREFIX)/bin/gitlab-sardine-executor
