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

# Not every distribution has a static libc installed.
can_link_statically() {
    echo 'int main(void) { return 0; }' >"$out/nothing.c" &&
        "${CC:-cc}" -static "$out/nothing.c" -o "$out/nothing" 2>/dev/null
}

# with_cmake TARGET VERSION SOURCE: the hello program in a project of its own, against what is installed in $prefix.
with_cmake() {
    rm -rf "$out/empty" && mkdir "$out/empty" && cp "$source/tests/install/$3" "$out/empty/" || return
    cat >"$out/empty/CMakeLists.txt" <<EOF
cmake_minimum_required(VERSION 3.13)
project(hello C CXX)
set(CMAKE_CXX_STANDARD 17)
find_package(httpdown $2 REQUIRED)
add_executable(hello $3)
target_link_libraries(hello PRIVATE httpdown::$1)
EOF
    cmake -S "$out/empty" -B "$out/empty" -DCMAKE_PREFIX_PATH="$prefix" \
        -DCMAKE_C_COMPILER="${CC:-cc}" -DCMAKE_CXX_COMPILER="${CXX:-c++}" && cmake --build "$out/empty"
}

# A copy of the sources, and what stands for cargo: it builds nothing, but where the real one would.
tree=$out/tree
tree() {
    mkdir "$tree" || return
    cp -r Makefile Cargo.toml Cargo.lock build.rs src examples include bindings cmake httpdown.pc.in "$tree" || return
    cat >"$out/cargo" <<EOF
#!/bin/sh
[ "\$1" = metadata ] && exec "${CARGO:-cargo}" "\$@"
mkdir -p "\$WHERE/release" && cd "\$WHERE/release" && echo a >libhttpdown.a && echo so >libhttpdown.so
EOF
    chmod +x "$out/cargo"
}
# builds_in FOLDER ENVIRONMENT...: make lib takes what cargo has built in that folder.
builds_in() {
    folder=$1
    shift
    rm -rf "$tree/build" "$tree/target"
    env -u CARGO_TARGET_DIR WHERE="$folder" "$@" make -C "$tree" lib CARGO="$out/cargo" OBJCOPY=/nowhere &&
        [ "$(cat "$tree/build/libhttpdown.so.0" "$tree/build/libhttpdown.a")" = "$(printf 'so\na')" ]
}
configured() {
    mkdir "$tree/.cargo" && printf '[build]\ntarget-dir = "%s"\n' "$1" >"$tree/.cargo/config.toml" && builds_in "$1"
}

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)

prefix=$out/prefix
lib=$prefix/lib include=$prefix/include
check "PREFIX: make install" make install PREFIX="$prefix"
check "PREFIX: the libraries are there" libraries
check "PREFIX: the headers are there" headers
export PKG_CONFIG_LIBDIR="$lib/pkgconfig"
programs PREFIX
if can_link_statically; then
    static=$(pkg-config --static --libs httpdown)
    check "PREFIX: hello.c compiles, -static" build hello.c "$static" "${CC:-cc}" -std=c99 -static
    check "PREFIX: hello.c serves, and stops, with no library at all" runs_alone
else
    echo "skipped: -static, without a static libc"
fi
if command -v cmake >/dev/null; then
    check "PREFIX: CMake builds hello.c" with_cmake httpdown "" hello.c
    check "PREFIX: hello.c of CMake serves, and stops" runs_alone
    check "PREFIX: CMake builds hello.cpp with the static library" with_cmake static "${version%.*}" hello.cpp
    mv "$lib/libhttpdown.so.$version" "$lib/away"
    check "PREFIX: hello.cpp of CMake serves, and stops, without the shared one" runs_alone
    mv "$lib/away" "$lib/libhttpdown.so.$version"
    check "PREFIX: CMake finds no version that is not there" eval '! with_cmake httpdown 99.0 hello.c'
    mv "$prefix" "$out/moved" && prefix=$out/moved
    check "PREFIX: CMake builds hello.c where all has been moved to" with_cmake httpdown "$version" hello.c
    prefix=$out/prefix && mv "$out/moved" "$prefix"
else
    echo "skipped: CMake, which is missing (make tools)"
fi
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

unset PKG_CONFIG_SYSROOT_DIR
check "make: a copy of the sources" tree
check "make: takes the library from CARGO_TARGET_DIR" builds_in "$out/a folder" CARGO_TARGET_DIR="$out/a folder"
check "make: takes the library from target/" builds_in "$tree/target"
check "make: takes the library from where cargo is configured to build" configured "$out/b"
check "make install: what is built, without cargo" make -C "$tree" install CARGO=/nowhere PREFIX="$out/nocargo"
check "make install: has installed it" [ "$(cat "$out/nocargo/lib/libhttpdown.so")" = so ]
printf '#!/bin/sh\necho tools\n' >"$out/tools.sh" && chmod +x "$out/tools.sh"
mkdir "$tree/tests" && cp "$out/tools.sh" "$tree/tests/tools.sh"
printf '#!/bin/sh\n' >"$tree/tests/all.sh" && chmod +x "$tree/tests/all.sh"
test_tools() { make -C "$tree" build/tools.stamp | grep -c '^tools'; }
check "make test: names its tools" eval 'make -n -C "$tree" test CARGO="$out/cargo" | grep tests/tools.sh'
check "make test: has its tools made" [ "$(test_tools)" = 1 ]
check "make test: not twice" [ "$(test_tools)" = 0 ]
touch -d '+1 minute' "$tree/tests/tools.sh"
check "make test: but when they have changed" [ "$(test_tools)" = 1 ]

echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
