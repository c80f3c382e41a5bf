#!/bin/sh
# Builds the C++ demo and the C++ tests, runs the tests, and where there is valgrind, runs them under it.
# CXX and STANDARDS ("17 20") come from the environment.
set -eu
cd "$(dirname "$0")/../.."
tests/cpp/complete.sh
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

# build STANDARD ARGUMENT...
build() {
    standard=$1
    shift
    # DWARF 4, because valgrind cannot read the 5 of every clang.
    ${CXX:-c++} -std=c++$standard -O2 -gdwarf-4 -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror \
        -Iinclude -Ibindings/cpp "$@" -Lbuild -lhttpdown -pthread -Wl,-rpath,"$PWD/build"
}

compilers=
for standard in ${STANDARDS:-17 20}; do
    (
        mkdir "$out/$standard"
        build "$standard" examples/demo.cpp -o "$out/$standard/demo"
        build "$standard" -fno-exceptions -fno-rtti -Weffc++ -c tests/cpp/without_exceptions.cpp \
            -o "$out/$standard/without_exceptions.o"
        build "$standard" tests/cpp/test.cpp tests/cpp/ready.cpp tests/cpp/upgrade.cpp tests/cpp/tls.cpp \
            tests/cpp/restart.cpp tests/cpp/second.cpp \
            "$out/$standard/without_exceptions.o" -o "$out/$standard/test"
    ) &
    compilers="$compilers $!"
done
for pid in $compilers; do wait "$pid"; done

for standard in ${STANDARDS:-17 20}; do
    echo "# ${CXX:-c++} -std=c++$standard"
    newest=$out/$standard/test
    "$newest"
done
HTTPDOWN_TEST_SOCKETS=unix "$newest"

if command -v valgrind >/dev/null; then
    echo "# under valgrind"
    valgrind --quiet --error-exitcode=1 --leak-check=full --errors-for-leak-kinds=definite,possible "$newest"
else
    echo "not run under valgrind: there is none"
fi
