# Everything here works on a bare Debian 12 as root: each target installs what it needs first.

TARGET := x86_64-unknown-linux-musl
BINARY := target/$(TARGET)/release/terway
AARCH64 := aarch64-unknown-linux-musl
export TERWAY_BINARY := $(CURDIR)/$(BINARY)

# Where cargo put the demo. It is run without cargo in between, which would not wait for its end after a Ctrl-C.
DEMO := cargo test --test demo --no-run --message-format=json 2>/dev/null | sed -n 's/.*"executable":"\([^"]*\/demo-[^"]*\)".*/\1/p'

.PHONY: help demo test test-kernels bench build package package-aarch64 deps check check-aarch64 audit fuzz docs clean

help:
	@echo "make demo    build, then show nodes, pods and every path between them; a report: target/demo.html"
	@echo "             (MODE=policy-route, ipvlan or exclusive; KEEP=1 leaves the world up)"
	@echo "make test    build, then run every test"
	@echo "make test-kernels   of these the ones on other kernels: without eBPF, and Debian's two in guests"
	@echo "make bench   build, then measure; also written to target/bench.json      (STRICT=1 fails on a missed goal)"
	@echo "make build   the static binary: $(BINARY)"
	@echo "make package  a DEB and an RPM of it: target/packages   (RELEASE=2 is the second of a version; make package-aarch64: cross-built)"
	@echo "make check   format and lints   (make check-aarch64: that it compiles for aarch64, eBPF and C included)"
	@echo "make audit   licences, sources and duplicates of what we depend on, and what is known against it"
	@echo "make fuzz    every parser of what others write, for a minute each  (SECONDS=180; TARGETS=\"cni cloud\", of tests/fuzz/seeds)"
	@echo "make docs    docs/configuration.md from the code, after a key has changed"

deps:
	@tests/deps.sh

build: deps
	@echo "building $(BINARY)"
	@cargo build --release --target $(TARGET) --bin terway
	@ls -l $(BINARY)

package: build
	@packaging/build.sh x86_64 $(BINARY) target/packages
	@ls -l target/packages

package-aarch64: build
	@tests/deps.sh aarch64
	@cargo build --release --target $(AARCH64) --bin terway
	@TERWAY_SPEAKS=$(BINARY) packaging/build.sh aarch64 target/$(AARCH64)/release/terway target/packages
	@ls -l target/packages

demo: build
	@cargo test --test demo --no-run
	@exec "$$($(DEMO))" --mode $(or $(MODE),policy-route) $(if $(KEEP),--keep)

test: build
	@tests/browser.sh --install
	@rm -f target/skipped
	@cargo test -- --test-threads=2
	@tests/skips.sh

test-kernels: deps
	@cargo test --test main vm::

bench: build
	@cargo bench --profile dev --bench bench -q -- $(if $(STRICT),--strict)

check:
	@cargo fmt --check
	@cargo clippy --all-targets -- -D warnings

check-aarch64: deps
	@tests/deps.sh aarch64
	@cargo check --target $(AARCH64) --bin terway

audit: deps
	@tests/audit.sh

fuzz: deps
	@tests/fuzz/run.sh $(or $(SECONDS),60) $(TARGETS)

docs: deps
	@TERWAY_DOCS=write cargo test -q --test main documents::
	@git --no-pager diff --stat -- docs

clean:
	@cargo clean
