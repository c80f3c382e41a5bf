#!/bin/sh
# Installs into fresh directories, and builds and runs programs with nothing but what is installed and what pkg-config
# says. CC, CXX and PYTHON come from the environment.
cd "$(dirname "$0")/../.." || exit 1
command -v pkg-config >/dev/null || {
    echo "skipped: no pkg-config"
    exit 77
}
source=$PWD
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
passed=0 failed=0

# check WHAT COMMAND...: passes if the command does; otherwise shows what it has said.
check() {
    what=$1
    shift
    if "$@" >"$out/said" 2>&1; then
        passed=$((passed + 1))
        echo "ok   $what"
    else
        failed=$((failed + 1))
        echo "FAIL $what"
        head -n 40 "$out/said" | sed "s/^/     /"
    fi
}

# The library as a real file, and the two names by which the loader and the linker ask for it.
libraries() {
    [ -f "$lib/libhttpdown.so.$version" ] && [ ! -L "$lib/libhttpdown.so.$version" ] &&
        [ -L "$lib/libhttpdown.so.0" ] && cmp "$lib/libhttpdown.so.0" build/libhttpdown.so &&
        [ -L "$lib/libhttpdown.so" ] && cmp "$lib/libhttpdown.so" build/libhttpdown.so &&
        cmp "$lib/libhttpdown.a" build/libhttpdown.a
}
headers() {
    cmp "$include/httpdown.h" include/httpdown.h && cmp "$include/httpdown.hpp" bindings/cpp/httpdown.hpp
}
same() { [ "$1" = "$2" ] || { echo "'$1' is not '$2'" && false; }; }

# build OUTPUT LIBS COMPILER...: in a directory with nothing but the source.
build() {
    rm -rf "$out/empty" && mkdir "$out/empty" && cd "$out/empty" || return
    program=$1 libs=$2
    shift 2
    cp "$source/tests/install/$program" .
    # shellcheck disable=SC2046,SC2086 # flags are several words
    "$@" -Wall -Wextra -Wpedantic -Werror $(pkg-config --cflags httpdown) "$program" -o hello $libs
    code=$?
    cd "$source" && return $code
}
runs() { env LD_LIBRARY_PATH="$lib" "${PYTHON:-python3}" tests/install/ask.py "$out/empty/hello"; }
runs_alone() { env -u LD_LIBRARY_PATH "${PYTHON:-python3}" tests/install/ask.py "$out/empty/hello"; }

# programs WHERE: those that can be built against what is installed there.
programs() {
    check "$1: pkg-config knows the version" same "$(pkg-config --modversion httpdown)" "$version"
    check "$1: hello.c compiles" build hello.c "$(pkg-config --libs httpdown)" "${CC:-cc}" -std=c99
    check "$1: hello.c serves, and stops" runs
    check "$1: hello.cpp compiles" build hello.cpp "$(pkg-config --libs httpdown)" "${CXX:-c++}" -std=c++17
    check "$1: hello.cpp serves, and stops" runs
    static=$(pkg-config --static --libs httpdown | sed 's/-lhttpdown/-l:libhttpdown.a/')
    check "$1: hello.c compiles, with the static library" build hello.c "$static" "${CC:-cc}" -std=c99
    check "$1: hello.c serves, and stops, without the shared one" runs_alone
}

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)

prefix=$out/prefix
lib=$prefix/lib include=$prefix/include
check "PREFIX: make install" make install PREFIX="$prefix"
check "PREFIX: the libraries are there" libraries
check "PREFIX: the headers are there" headers
export PKG_CONFIG_LIBDIR="$lib/pkgconfig"
programs PREFIX
check "PREFIX: make uninstall" make uninstall PREFIX="$prefix"
check "PREFIX: nothing is left" same "$(find "$prefix" ! -type d)" ""

dest=$out/dest
lib=$dest/usr/lib include=$dest/usr/include
check "DESTDIR: make install" make install PREFIX=/usr DESTDIR="$dest"
check "DESTDIR: the libraries are there" libraries
check "DESTDIR: the headers are there" headers
check "DESTDIR: httpdown.pc knows nothing of it" same "$(grep -c "$dest" "$lib/pkgconfig/httpdown.pc")" 0
# As if the directory were the root: pkg-config would otherwise leave out what every compiler knows.
export PKG_CONFIG_LIBDIR="$lib/pkgconfig" PKG_CONFIG_SYSROOT_DIR="$dest"
export PKG_CONFIG_ALLOW_SYSTEM_CFLAGS=1 PKG_CONFIG_ALLOW_SYSTEM_LIBS=1
programs DESTDIR

echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
