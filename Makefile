# `make` builds; `make help` lists the rest.

PREFIX  ?= /usr/local
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
BINARY  := bin/gitlab-sardine-executor

# Without go vet, which lint runs.
GOTEST := go test -count=1 -vet=off -timeout 60m

.DEFAULT_GOAL := build
.PHONY: help deps build guest full-guest demo test test-session test-boot test-system test-packages test-faults test-soak fuzz bench bench-oci lint install

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

deps: ## install the Debian packages that are missing
	@scripts/deps.sh

build: ## build bin/gitlab-sardine-executor
	go build -ldflags '-X main.version=$(VERSION)' -o $(BINARY) ./cmd/gitlab-sardine-executor

guest: ## make the test guest from Debian packages, once
	@scripts/build-guest.sh

full-guest: ## make a whole Debian with cloud-init for one of the tests, once
	@scripts/build-full-guest.sh

demo: deps build guest ## push the test guest to a registry and run a job in it
	@scripts/demo.sh

# Each part has a host of its own. Two at once: guests that boot use a processor each,
# and more of them than there are processors slow each other down.
test: deps guest full-guest ## run every test, end to end ones included
	@$(MAKE) --no-print-directory --keep-going -j2 test-session test-boot test-system test-packages

test-session test-system: test-%:
	$(GOTEST) ./e2e -mode $*

test-boot:
	$(GOTEST) ./vm/boottest

test-packages:
	$(GOTEST) -p 1 $$(go list ./... | grep -v -e /e2e$$ -e /boottest$$)

test-faults: deps guest ## kill each part at each moment of a job: docs/reliability.md
	$(GOTEST) ./e2e -run 'TestFaults|TestSnapshotInterrupted' -faults -v

test-soak: deps guest full-guest ## run 200 jobs one after another, and 40 eight at a time, in each mode: an hour
	$(GOTEST) ./e2e -run TestSoak -soak 200 -soak-at-once 40 -timeout 2h -v
	$(GOTEST) ./vm/boottest -run TestFullGuestFromASnapshot -full-snapshot -v

# Minimising what is merely new takes a minute for each by default, and nothing else
# is tried meanwhile.
FUZZTIME ?= 20s
fuzz: ## let each fuzz target look for FUZZTIME (20s)
	@grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u | while read -r dir; do \
		for target in $$(grep -ho '^func Fuzz[A-Za-z0-9]*' $$dir/*_test.go | cut -d' ' -f2); do \
			echo "$$dir $$target"; \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 5x $$dir || exit 1; \
		done; \
	done

bench: deps build guest ## measure against virsh, ssh, skopeo
	go test -run '^$$' -bench . -benchtime 1x -timeout 60m ./...

bench-oci: deps ## measure pulls of a gigabyte against skopeo and gzip
	go run ./oci/bench

lint: ## gofmt and go vet
	@unformatted=$$(gofmt -l .); [ -z "$$unformatted" ] || { echo "gofmt wants to change: $$unformatted"; exit 1; }
	go vet ./...

# Not after a build of its own: under sudo there may be no go on the PATH.
install: ## install what make built to $(PREFIX)/bin
	@[ -x $(BINARY) ] || { echo "$(BINARY) is missing; first run, without sudo: make build"; exit 1; }
	install -D -m 755 $(BINARY) $(DESTDIR)$(PREFIX)/bin/gitlab-sardine-executor
