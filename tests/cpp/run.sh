#!/bin/sh
# Builds the C++ demo and the C++ tests, runs the tests, and where there is valgrind, runs them under it.
# CXX and STANDARDS ("17 20") come from the environment.
set -eu
cd "$(dirname "$0")/../.."
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

for standard in ${STANDARDS:-17 20}; do
    # DWARF 4, because valgrind cannot read the 5 of every clang.
    build() {
        ${CXX:-c++} -std=c++$standard -O2 -gdwarf-4 -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror \
            -Iinclude -Ibindings/cpp "$@" -Lbuild -lhttpdown -pthread -Wl,-rpath,"$PWD/build"
    }
    echo "# ${CXX:-c++} -std=c++$standard"
    build examples/demo.cpp -o "$out/demo"
    build -fno-exceptions -fno-rtti -Weffc++ -c tests/cpp/without_exceptions.cpp -o "$out/without_exceptions.o"
    build tests/cpp/test.cpp tests/cpp/tls.cpp tests/cpp/second.cpp "$out/without_exceptions.o" -o "$out/test"
    "$out/test"
done
HTTPDOWN_TEST_SOCKETS=unix "$out/test"

if command -v valgrind >/dev/null; then
    echo "# under valgrind"
    valgrind --quiet --error-exitcode=1 --leak-check=full --errors-for-leak-kinds=definite,possible "$out/test"
else
    echo "not run under valgrind: there is none"
fi
