# httpdown: `make help` lists what can be made.

CARGO   ?= cargo
CC      ?= cc
CXX     ?= c++
PYTHON  ?= python3
PREFIX  ?= /usr/local
LIBDIR  ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include

CFLAGS   ?= -O2 -g
CXXFLAGS ?= -O2 -g
WARNINGS := -Wall -Wextra -Wpedantic -Werror

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
SONAME  := libhttpdown.so.$(firstword $(subst ., ,$(VERSION)))

# What is linked statically needs what Rust's std and libm need.
STATIC_LIBS := -lpthread -lm -ldl -lgcc_s -lc
# The programs in build/ find the library beside them.
LINK := -Lbuild -lhttpdown -lpthread -lm -Wl,-rpath,'$$ORIGIN'

EXAMPLES := build/demo build/hello

.DEFAULT_GOAL := build
.PHONY: FORCE build lib header demo test check fmt lint rust-test c-test python-test install clean help

build: lib $(EXAMPLES) ## the library and the example programs, into build/

lib: build/$(SONAME) ## the shared and the static library, into build/

build/$(SONAME): FORCE
	@mkdir -p build
	@$(CARGO) build --release --quiet
	@cmp -s target/release/libhttpdown.so $@ || cp target/release/libhttpdown.so $@
	@cmp -s target/release/libhttpdown.a build/libhttpdown.a || cp target/release/libhttpdown.a build/
	@ln -sf $(SONAME) build/libhttpdown.so

FORCE:

header: ## include/httpdown.h anew, from src/ffi
	HTTPDOWN_UPDATE_HEADER=1 $(CARGO) check --quiet

build/%: examples/%.c examples/cli.h include/httpdown.h build/$(SONAME)
	$(CC) -std=c99 $(CFLAGS) $(WARNINGS) -Iinclude $< -o $@ $(LINK)

demo: build/demo ## the graceful stop, shown in seconds
	@$(PYTHON) examples/story.py build/demo

clean: ## removes what was built
	$(CARGO) clean --quiet
	rm -rf build

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16
