# httpdown: `make help` lists what can be made.

CARGO   ?= cargo
CC      ?= cc
CXX     ?= c++
OBJCOPY ?= objcopy
PYTHON  ?= python3
PREFIX  ?= /usr/local
LIBDIR  ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include

CFLAGS   ?= -O2 -g
CXXFLAGS ?= -O2 -g
WARNINGS := -Wall -Wextra -Wpedantic -Werror

# TLS=0 leaves TLS out, and the cryptography that it needs.
TLS ?= 1
FEATURES := $(if $(filter 0,$(TLS)),--no-default-features --features capi)

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
SONAME  := libhttpdown.so.$(firstword $(subst ., ,$(VERSION)))

# The programs in build/ find the library beside them.
LINK := -Lbuild -lhttpdown -lpthread -lm -Wl,-rpath,'$$ORIGIN'

# The programs in Rust are in a folder of their own: some have the names of those in C.
BENCH := build/rust/bench build/rust/hello
PROGRAMS := release
EXAMPLES := build/demo build/hello build/files build/access_log build/events build/limits \
    build/long_poll build/grace build/demo-cpp build/rust/demo build/rust/lossmeter \
    $(BENCH)

# Where cargo builds, as its environment (CARGO_TARGET_DIR) and configuration say: asked once, by what needs it. What
# is built there is copied into build/, so that nothing else has to know.
TARGET_DIR = $(eval TARGET_DIR := $$(shell $(CARGO) metadata --no-deps --format-version 1 | \
    sed 's/.*"target_directory":"\([^"]*\)".*/\1/'))$(TARGET_DIR)

.DEFAULT_GOAL := build
.PHONY: FORCE build lib options header demo demo-restart lossmeter lossmeter-compare bench bench-gate certs test check fmt lint doc rust-tests tools install uninstall clean help
.DELETE_ON_ERROR:

build: lib build/demo build/hello ## the library and the C programs, into build/

lib: build/$(SONAME) ## the shared and the static library, into build/

build/$(SONAME): FORCE
	@mkdir -p build
	@# Not with the Rust library in one go: that would be without link-time optimization.
	@$(CARGO) rustc --release --quiet --lib $(FEATURES) --crate-type cdylib --crate-type staticlib
	@# By way of mv: a program that runs meanwhile keeps the file that it has mapped.
	@cmp -s "$(TARGET_DIR)/release/libhttpdown.so" $@ || \
	    { cp "$(TARGET_DIR)/release/libhttpdown.so" $@.new && mv $@.new $@; }
	@# Link-time optimization leaves a name in it that any other Rust library may have, too, and aws-lc has some without
	@# its own prefix. A compiler may do without objcopy; then they stay there.
	@cp "$(TARGET_DIR)/release/libhttpdown.a" build/libhttpdown.a.new
	@! command -v $(OBJCOPY) >/dev/null || { \
	    nm -g --defined-only build/libhttpdown.a.new 2>/dev/null | \
	        awk 'NF == 3 && $$3 ~ /^(mldsa_|sha3_keccak)/ { print $$3, "httpdown_" $$3 }' | sort -u >build/names && \
	    $(OBJCOPY) --localize-symbol=rust_eh_personality --redefine-syms=build/names build/libhttpdown.a.new; }
	@mv build/libhttpdown.a.new build/libhttpdown.a
	@ln -sf $(SONAME) build/libhttpdown.so

FORCE:

options: ## the lines about options in every language, from src/options.toml
	$(PYTHON) bindings/options.py
	$(MAKE) header

header: ## include/httpdown.h anew, from src/ffi
	HTTPDOWN_UPDATE_HEADER=1 $(CARGO) check --quiet

build/%: examples/%.c examples/cli.h include/httpdown.h build/$(SONAME)
	$(CC) -std=c99 $(CFLAGS) $(WARNINGS) -Iinclude $< -o $@ $(LINK)

# Not among those that `build` and `test` need: it needs two libraries more.
build/websocket: examples/websocket.c examples/cli.h include/httpdown.h build/$(SONAME)
	@for header in wslay/wslay.h nettle/sha1.h; do \
	    echo "#include <$$header>" | $(CC) -E -x c - >/dev/null 2>&1 || \
	        { echo "$@ needs wslay and nettle (Debian: libwslay-dev, nettle-dev): there is no $$header"; exit 1; }; done
	$(CC) -std=c99 $(CFLAGS) $(WARNINGS) -Iinclude $< -o $@ $(LINK) -lwslay -lnettle

build/demo-cpp: examples/demo.cpp examples/cli.h bindings/cpp/httpdown.hpp include/httpdown.h build/$(SONAME)
	$(CXX) -std=c++17 $(CXXFLAGS) $(WARNINGS) -Iinclude -Ibindings/cpp $< -o $@ $(LINK)

# Those that say how quick something is are built together, which is quicker. For `test`, all are built as the tests are.
QUICK := bench hello
build/rust/%: FOLDER = $(if $(filter $(QUICK),$*),release,$(PROGRAMS))
build/rust/%: FORCE
	@mkdir -p build/rust
	@$(CARGO) build $(if $(filter release,$(FOLDER)),--release) --quiet --example $* \
	    $(if $(filter $(QUICK),$*),$(QUICK:%=--example %))
	@cmp -s "$(TARGET_DIR)/$(FOLDER)/examples/$*" $@ || \
	    { cp "$(TARGET_DIR)/$(FOLDER)/examples/$*" $@.new && mv $@.new $@; }

demo: build/demo ## the graceful stop, shown in seconds
	@$(PYTHON) examples/story.py build/demo

demo-restart: build/grace ## restarts under load: a new version, a broken one, one that is killed
	@$(PYTHON) examples/restart_story.py build/grace

LOSSMETER := build/rust/lossmeter
SERVERS := 'hello=build/hello -addr {addr}' 'demo=build/demo -addr {addr}' --path '/?duration=5ms'

lossmeter: build $(LOSSMETER) ## looks for requests that a stop loses, some minutes long; OPTIONS="--modes new ..."
	@echo 'On the loopback device:'; \
	$(LOSSMETER) --jobs 4 $(SERVERS) 'unix=build/hello -addr unix:{unix}' $(OPTIONS); lost=$$?; \
	echo 'Over a round trip of 20 ms:'; \
	$(LOSSMETER) --jobs 4 --rtt 20ms --upload-size 100000 --big-path /bytes/1000000 $(SERVERS) $(OPTIONS) && exit $$lost

lossmeter-compare: build $(LOSSMETER) ## the same beside other servers, those that are installed; draws docs/lossmeter.svg
	@examples/lossmeter/peers/compare.sh --jobs 2 --svg docs/lossmeter.svg $(OPTIONS) || [ $$? = 1 ]

bench: build $(BENCH) ## what a request costs, here and in others, some 10 minutes; OPTIONS="--only ..." for less, or --help
	@examples/bench/peers/build.sh
	@$(firstword $(BENCH)) $(OPTIONS)

bench-gate: build $(BENCH) ## whether a request takes more instructions than examples/bench/gate.json; OPTIONS=--update
	@$(firstword $(BENCH)) --gate examples/bench/gate.json $(OPTIONS)

certs: ## certificates to try TLS with, into build/certs
	@examples/certs.sh build/certs

test: PROGRAMS := debug
test: QUICK :=
test: build/tools.stamp lib $(EXAMPLES) ## everything: Rust, C, C++, Python; SUITES="rust c" for some of it
	@# What was set by the caller (CC, CXX, CARGO, PYTHON) is in the environment. Nothing is added to it: aws-lc is built
	@# anew when it finds another CC than before.
	@tests/all.sh $(SUITES)

check: fmt ## what CI runs; the header is compared by every build
	@# At once, though they share the processors: each alone leaves some of them idle at its end. (No number behind -j,
	@# because cargo would take it for its own.)
	@$(MAKE) --no-print-directory -j --output-sync tools lint doc lib rust-tests
	@$(MAKE) --no-print-directory test

fmt: # formatting, compared
	$(CARGO) fmt --check

lint: # clippy, warnings as errors
	$(CARGO) clippy --quiet --all-targets -- -D warnings
	$(CARGO) clippy --quiet --lib --no-default-features -- -D warnings

doc: # the Rust reference, warnings as errors
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --quiet --no-deps

rust-tests: # built, not run
	$(CARGO) test --quiet --no-run

TOOLS := mkdir -p build && timeout 1200 tests/tools.sh && touch build/tools.stamp

tools: ## what the tests need beyond Rust, C and Python, as far as it can be installed
	@$(TOOLS)

# For `test`: when the list has changed. What could not be had then is tried again by `tools`, not by every test.
build/tools.stamp: tests/tools.sh
	@$(TOOLS)

# Without cargo, which root may not have, if `make` has built them.
install: $(if $(and $(wildcard build/$(SONAME)),$(wildcard build/libhttpdown.a)),,lib)
install: ## what `make` has built, with pkg-config file and CMake package: PREFIX, LIBDIR, INCLUDEDIR, DESTDIR
	install -d $(DESTDIR)$(LIBDIR)/pkgconfig $(DESTDIR)$(LIBDIR)/cmake/httpdown $(DESTDIR)$(INCLUDEDIR)
	install -m 755 build/$(SONAME) $(DESTDIR)$(LIBDIR)/libhttpdown.so.$(VERSION)
	ln -sf libhttpdown.so.$(VERSION) $(DESTDIR)$(LIBDIR)/$(SONAME)
	ln -sf $(SONAME) $(DESTDIR)$(LIBDIR)/libhttpdown.so
	install -m 644 build/libhttpdown.a $(DESTDIR)$(LIBDIR)/
	install -m 644 include/httpdown.h bindings/cpp/httpdown.hpp $(DESTDIR)$(INCLUDEDIR)/
	sed -i 's/^\(#define HTTPDOWN_HAS_TLS\) 1/\1 $(TLS)/' $(DESTDIR)$(INCLUDEDIR)/httpdown.h
	sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@LIBDIR@|$(LIBDIR)|' -e 's|@INCLUDEDIR@|$(INCLUDEDIR)|' \
	    -e 's|@VERSION@|$(VERSION)|' httpdown.pc.in > $(DESTDIR)$(LIBDIR)/pkgconfig/httpdown.pc
	for file in httpdownConfig.cmake httpdownConfigVersion.cmake; do \
	    sed -e 's|@INCLUDEDIR_FROM_LIBDIR@|'"$$(realpath -m --relative-to="$(LIBDIR)" "$(INCLUDEDIR)")"'|' \
	        -e 's|@VERSION@|$(VERSION)|' -e 's|@SONAME@|$(SONAME)|' cmake/$$file.in \
	        > $(DESTDIR)$(LIBDIR)/cmake/httpdown/$$file || exit 1; \
	done

uninstall: ## removes what install has put there
	rm -f $(DESTDIR)$(LIBDIR)/libhttpdown.* $(DESTDIR)$(LIBDIR)/pkgconfig/httpdown.pc \
	    $(DESTDIR)$(LIBDIR)/cmake/httpdown/httpdownConfig*.cmake \
	    $(DESTDIR)$(INCLUDEDIR)/httpdown.h $(DESTDIR)$(INCLUDEDIR)/httpdown.hpp

clean: ## removes what was built
	$(CARGO) clean --quiet
	rm -rf build

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 20
