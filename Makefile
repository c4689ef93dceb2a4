# `make` builds; `make help` lists the rest.

PREFIX  ?= /usr/local
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
BINARY  := bin/gitlab-sardine-executor
PACKAGE := ./cmd/gitlab-sardine-executor

# What the binary is built with. CGO is needed: libvirt's binding calls the C library,
# which is linked dynamically. The same sources, Go, gcc and libvirt-dev give the same
# bytes in any directory (make check-binary): -trimpath removes paths, and the version
# comes from VERSION and COMMIT, not from the state of a checkout (-buildvcs=false).
#
#   no flags                  33.1 MB
#   -ldflags '-s -w'          23.4 MB   no symbol table, no DWARF; stack traces stay
#   -tags grpcnotrace         -0.3 MB   no pages for a browser in gRPC
#   -tags urfave_cli_no_docs  -0.3 MB   no Markdown and man page generator
#   -modfile (scripts/slim)   -3.3 MB   no text/template, and no methods that only it could call
#
# gRPC, for the nesting API, is 2.0 MB of the first.
#
# The build tags of containers/image (containers_image_openpgp, _docker_daemon_stub,
# _storage_stub) change nothing: only its docker transport is imported.
TAGS    := urfave_cli_no_docs,grpcnotrace
COMMIT  := $(shell git rev-parse HEAD 2>/dev/null)
LDFLAGS := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)
GOBUILD := CGO_ENABLED=1 go build -trimpath -buildvcs=false -tags $(TAGS)

# Tools are pinned here and run by the Go module proxy; nothing is installed.
STATICCHECK := go run honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK := go run golang.org/x/vuln/cmd/govulncheck@v1.9.0

# Without go vet, which lint runs.
GOTEST := go test -count=1 -vet=off -timeout 60m
# What boots machines is below test/, behind the tag boot. The tag nightly adds the rows
# and tests that take long.
GOBOOT := $(GOTEST) -tags boot
GONIGHT := $(GOTEST) -tags boot,nightly

.DEFAULT_GOAL := build
.PHONY: help deps nightly-deps build guest arm64-guest full-guest full-guest-trixie demo picture test test-unit test-session test-session-1 test-session-2 test-system test-boot test-host test-full-guest nightly-session nightly-system nightly-boot nightly-host test-nightly test-upgrade test-debian13 test-debian13-smoke smoke package test-package first-hour test-race test-faults test-soak fuzz bench bench-oci lint architecture settings site check-binary vulncheck install

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

deps: ## install the Debian packages that are missing
	@scripts/deps.sh

nightly-deps: ## install what the tests at night need besides
	@scripts/deps.sh nightly

build: ## build bin/gitlab-sardine-executor
	modfile=$$(go run ./scripts/slim bin/slim) && $(GOBUILD) -modfile "$$modfile" -ldflags '$(LDFLAGS)' -o $(BINARY) $(PACKAGE)

guest: ## make the test guest from Debian packages, once
	@scripts/build-guest.sh

arm64-guest: ## make the test guest for arm64, once
	@scripts/build-guest.sh arm64

full-guest: ## make a whole Debian with cloud-init, once
	@scripts/build-full-guest.sh

full-guest-trixie: ## the same of Debian 13, for the tests at night
	@scripts/build-full-guest.sh trixie

demo: deps build guest ## push the test guest to a registry and run a job in it
	@scripts/demo.sh

picture: deps build guest ## draw docs/images/job.svg from a real run
	@scripts/picture.sh

# Each part has a host of its own. One more at once than two processors, since each part
# also waits: for timeouts, leases, and guests that stand still.
test: deps guest ## run the tests of every day: the unit tests, and those that boot machines
	@$(MAKE) --no-print-directory --keep-going -j3 test-boot test-session-1 test-session-2 test-system test-host test-unit

test-unit: ## run the unit tests: no root, no libvirtd, no guest
	$(GOTEST) ./...

test-session test-system: test-%: ## run jobs as an ordinary user; as root
	$(GOBOOT) ./test/e2e -mode $*

# The jobs of an ordinary user are the longest part. Its halves are for make test; a name
# matches or does not, so that no test is in neither.
HALF := Cache|Faults|Idle|Killed|PowerOff|Signal|Snapshot|ToolsDisk|Upgrade
test-session-1:
	$(GOBOOT) ./test/e2e -mode session -skip '$(HALF)'

test-session-2:
	$(GOBOOT) ./test/e2e -mode session -run '$(HALF)'

test-boot: ## boot machines by package vm, in both modes
	$(GOBOOT) ./test/boot

test-host: ## test the commands for base machines, and the test equipment
	$(GOBOOT) -p 1 ./test/admin ./internal/testbed

test-full-guest: full-guest ## boot a whole Debian with cloud-init, systemd and OpenSSH
	$(GONIGHT) ./test/boot -run '^TestFullGuest$$'

test-upgrade: deps guest ## test that this driver finds what that of the last tag left (REVISION=…)
	@scripts/test-upgrade.sh $(REVISION)

# With the libvirt, QEMU and passt of that release, on this machine's kernel. A part of it
# is for every commit, the whole for nights.
test-debian13: guest ## run the tests with the parts of Debian 13
	@scripts/in-debian.sh trixie $(MAKE) --no-print-directory --keep-going test-session test-boot test-system test-host

test-apparmor: build guest ## run jobs in a Debian 13 that enforces AppArmor, and write docs/apparmor.md
	@scripts/test-apparmor.sh

test-debian13-smoke: guest ## run a few of them: each network, as root and as an ordinary user
	@scripts/in-debian.sh trixie $(MAKE) --no-print-directory smoke

smoke:
	$(GOTEST) ./vm/network/passt
	$(GOBOOT) ./test/e2e -run '^TestJob$$'
	$(GOBOOT) ./test/boot -run '^TestUserNetworkFindsNames$$'

# Debian's: a version has no hyphen, and begins with a digit.
PACKAGE_VERSION ?= $(shell echo '$(VERSION)' | sed -e 's/^v//' -e 's/^[^0-9]/0~&/' -e 's/^[0-9a-f]*\(-dirty\)\?$$/0~&/' -e 's/-/+/' -e 's/-/./g')
RELEASES := bookworm trixie
CLEAN    := ca-certificates lintian systemd-sysv

package: guest ## build dist/*.deb for Debian 12 and 13, and dist/*.rpm
	@scripts/in-debian.sh bookworm env COMMIT='$(COMMIT)' scripts/package.sh '$(PACKAGE_VERSION)' deb rpm
	@scripts/in-debian.sh trixie env COMMIT='$(COMMIT)' scripts/package.sh '$(PACKAGE_VERSION)' deb

test-package: guest ## install, use, upgrade and remove the packages in clean releases
	@for suite in $(RELEASES); do \
		for version in 0~test1 0~test2; do scripts/in-debian.sh $$suite scripts/package.sh $$version deb || exit 1; done; \
		n=$$(scripts/in-debian.sh $$suite sh -c '. /etc/os-release; echo $$VERSION_ID'); \
		DEBIAN_PACKAGES='$(CLEAN)' scripts/in-debian.sh $$suite scripts/test-package.sh \
			dist/gitlab-sardine-executor_0~test1+deb$${n}_*.deb dist/gitlab-sardine-executor_0~test2+deb$${n}_*.deb || exit 1; \
		rm -f dist/gitlab-sardine-executor_0~test*; \
	done
	@for version in 0~test1 0~test2; do scripts/in-debian.sh bookworm scripts/package.sh $$version rpm || exit 1; done
	@DEBIAN_PACKAGES='ca-certificates rpm systemd' scripts/in-debian.sh bookworm scripts/test-rpm.sh \
		dist/gitlab-sardine-executor-0~test1-*.rpm dist/gitlab-sardine-executor-0~test2-*.rpm
	@rm -f dist/gitlab-sardine-executor-0~test*

first-hour: guest ## walk from a clean Debian 13 to a job, and write docs/first-hour.md
	@scripts/in-debian.sh trixie env COMMIT='$(COMMIT)' scripts/package.sh 0~walk deb
	@DEBIAN_PACKAGES='$(CLEAN)' scripts/in-debian.sh trixie scripts/first-hour.sh dist/gitlab-sardine-executor_0~walk+deb13_*.deb
	@rm -f dist/gitlab-sardine-executor_0~walk*

# The race detector needs CGO and about twice the time. What boots machines runs without:
# the program under test is another process there.
test-race: ## run the unit tests with the race detector
	$(GOTEST) -race -p 1 ./...

test-faults: deps guest ## kill each part at each moment of a job: docs/reliability.md
	$(GOBOOT) ./test/e2e -run 'TestFaults|TestSnapshotInterrupted' -faults -v

SOAK ?= -soak 200 -soak-at-once 40
test-soak: deps guest ## run 200 jobs one after another, and 40 eight at a time, in each mode: an hour
	$(GONIGHT) ./test/e2e -run TestSoak $(SOAK) -timeout 2h -v

test-nightly: deps nightly-deps guest arm64-guest full-guest full-guest-trixie ## run every row of every test in both modes, and the faults: hours
	@$(MAKE) --no-print-directory --keep-going -j2 nightly-session nightly-boot nightly-system test-unit nightly-host

nightly-session nightly-system: nightly-%:
	$(GONIGHT) -timeout 5h ./test/e2e -mode $* -faults

nightly-boot:
	$(GONIGHT) -timeout 3h ./test/boot

nightly-host:
	$(GONIGHT) -p 1 ./test/admin ./internal/testbed

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

bench: deps build guest full-guest ## measure against virsh, ssh, skopeo; write docs/benchmarks.md
	@scripts/bench.sh

bench-oci: deps ## measure pulls of a gigabyte against skopeo and gzip
	go run ./test/bench

lint: ## gofmt, go vet, staticcheck, architecture, go.mod, licences
	@unformatted=$$(gofmt -l .); [ -z "$$unformatted" ] || { echo "run gofmt on: $$unformatted"; exit 1; }
	go vet -tags $(TAGS),boot,nightly,upgrade ./...
	go run ./internal/arch/draw -check .
	go run ./scripts/settings -check .
	$(STATICCHECK) -tags boot,nightly,upgrade ./...
	scripts/check-modules.sh
	go run ./scripts/licences -tags $(TAGS) $(PACKAGE)

architecture: ## draw docs/architecture.svg and the table of packages in docs/architecture.md
	go generate ./internal/arch

settings: ## make docs/settings.md from config.example.toml
	go run ./scripts/settings .

site: ## build the documentation as a site in .site/public, and check its links
	@scripts/site.sh

check-binary: ## build twice in two directories; compare; check size, C libraries and --help
	scripts/check-binary.sh

# govulncheck asks the database at https://vuln.go.dev; nothing is checked without it.
# CI runs it as a job of its own (.gitlab-ci.yml), for runners that can reach the database.
vulncheck: ## look for known vulnerabilities in what is linked (needs https://vuln.go.dev)
	$(GOVULNCHECK) -tags $(TAGS) ./...

# Not after a build of its own: under sudo there may be no go on the PATH.
install: ## install what make built to $(PREFIX)/bin
	@[ -x $(BINARY) ] || { echo "$(BINARY) is missing; first run, without sudo: make build"; exit 1; }
	install -D -m 755 $(BINARY) $(DESTDIR)$(PREFIX)/bin/gitlab-sardine-executor
