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

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
SONAME  := libhttpdown.so.$(firstword $(subst ., ,$(VERSION)))

# The programs in build/ find the library beside them.
LINK := -Lbuild -lhttpdown -lpthread -lm -Wl,-rpath,'$$ORIGIN'

BENCH := target/release/examples/bench target/release/examples/hello
EXAMPLES := build/demo build/hello build/demo-cpp target/release/examples/demo target/release/examples/lossmeter $(BENCH)

.DEFAULT_GOAL := build
.PHONY: FORCE build lib header demo lossmeter lossmeter-compare bench bench-gate test check fmt lint doc tools install uninstall clean help
.DELETE_ON_ERROR:

build: lib build/demo build/hello ## the library and the C programs, into build/

lib: build/$(SONAME) ## the shared and the static library, into build/

build/$(SONAME): FORCE
	@mkdir -p build
	@# Not with the Rust library in one go: that would be without link-time optimization.
	@$(CARGO) rustc --release --quiet --lib --crate-type cdylib --crate-type staticlib
	@# By way of mv: a program that runs meanwhile keeps the file that it has mapped.
	@cmp -s target/release/libhttpdown.so $@ || { cp target/release/libhttpdown.so $@.new && mv $@.new $@; }
	@# Link-time optimization leaves a name in it that any other Rust library may have, too. A compiler may do without
	@# objcopy; then it stays there.
	@cp target/release/libhttpdown.a build/libhttpdown.a.new
	@! command -v $(OBJCOPY) >/dev/null || $(OBJCOPY) --localize-symbol=rust_eh_personality build/libhttpdown.a.new
	@mv build/libhttpdown.a.new build/libhttpdown.a
	@ln -sf $(SONAME) build/libhttpdown.so

FORCE:

header: ## include/httpdown.h anew, from src/ffi
	HTTPDOWN_UPDATE_HEADER=1 $(CARGO) check --quiet

build/%: examples/%.c examples/cli.h include/httpdown.h build/$(SONAME)
	$(CC) -std=c99 $(CFLAGS) $(WARNINGS) -Iinclude $< -o $@ $(LINK)

build/demo-cpp: examples/demo.cpp examples/cli.h bindings/cpp/httpdown.hpp include/httpdown.h build/$(SONAME)
	$(CXX) -std=c++17 $(CXXFLAGS) $(WARNINGS) -Iinclude -Ibindings/cpp $< -o $@ $(LINK)

target/release/examples/%: FORCE
	@$(CARGO) build --release --quiet --example $*

demo: build/demo ## the graceful stop, shown in seconds
	@$(PYTHON) examples/story.py build/demo

LOSSMETER := target/release/examples/lossmeter
SERVERS := 'hello=build/hello -addr {addr}' 'demo=build/demo -addr {addr}' --path '/?duration=5ms'

lossmeter: build $(LOSSMETER) ## looks for requests that a stop loses, some minutes long; OPTIONS="--modes new ..."
	@echo 'On the loopback device:'; $(LOSSMETER) --jobs 4 $(SERVERS) $(OPTIONS); lost=$$?; \
	echo 'Over a round trip of 20 ms:'; \
	$(LOSSMETER) --jobs 4 --rtt 20ms --upload-size 100000 --big-path /bytes/1000000 $(SERVERS) $(OPTIONS) && exit $$lost

lossmeter-compare: build $(LOSSMETER) ## the same beside other servers, those that are installed; draws docs/lossmeter.svg
	@examples/lossmeter/peers/compare.sh --jobs 2 --svg docs/lossmeter.svg $(OPTIONS) || [ $$? = 1 ]

bench: build $(BENCH) ## what a request costs, here and in others, some 10 minutes; OPTIONS="--only ..." for less, or --help
	@examples/bench/peers/build.sh
	@$(firstword $(BENCH)) $(OPTIONS)

bench-gate: build $(BENCH) ## whether a request takes more instructions than examples/bench/gate.json; OPTIONS=--update
	@$(firstword $(BENCH)) --gate examples/bench/gate.json $(OPTIONS)

test: lib $(EXAMPLES) ## everything: Rust, C, C++, Python; SUITES="rust c" for some of it
	@CARGO="$(CARGO)" CC="$(CC)" CXX="$(CXX)" PYTHON="$(PYTHON)" tests/all.sh $(SUITES)

check: tools fmt lint doc test ## what CI runs; the header is compared by every build

fmt: # formatting, compared
	$(CARGO) fmt --check

lint: # clippy, warnings as errors
	$(CARGO) clippy --quiet --all-targets -- -D warnings
	$(CARGO) clippy --quiet --lib --no-default-features -- -D warnings

doc: # the Rust reference, warnings as errors
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --quiet --no-deps

tools: ## what the tests need beyond Rust, C and Python, as far as it can be installed
	@mkdir -p build
	@PYTHON="$(PYTHON)" tests/tools.sh

install: lib ## library, headers, pkg-config file: PREFIX, LIBDIR, INCLUDEDIR, DESTDIR
	install -d $(DESTDIR)$(LIBDIR)/pkgconfig $(DESTDIR)$(INCLUDEDIR)
	install -m 755 build/$(SONAME) $(DESTDIR)$(LIBDIR)/libhttpdown.so.$(VERSION)
	ln -sf libhttpdown.so.$(VERSION) $(DESTDIR)$(LIBDIR)/$(SONAME)
	ln -sf $(SONAME) $(DESTDIR)$(LIBDIR)/libhttpdown.so
	install -m 644 build/libhttpdown.a $(DESTDIR)$(LIBDIR)/
	install -m 644 include/httpdown.h bindings/cpp/httpdown.hpp $(DESTDIR)$(INCLUDEDIR)/
	sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@LIBDIR@|$(LIBDIR)|' -e 's|@INCLUDEDIR@|$(INCLUDEDIR)|' \
	    -e 's|@VERSION@|$(VERSION)|' httpdown.pc.in > $(DESTDIR)$(LIBDIR)/pkgconfig/httpdown.pc

uninstall: ## removes what install has put there
	rm -f $(DESTDIR)$(LIBDIR)/libhttpdown.* $(DESTDIR)$(LIBDIR)/pkgconfig/httpdown.pc \
	    $(DESTDIR)$(INCLUDEDIR)/httpdown.h $(DESTDIR)$(INCLUDEDIR)/httpdown.hpp

clean: ## removes what was built
	$(CARGO) clean --quiet
	rm -rf build

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 20
