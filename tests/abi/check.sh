#!/bin/sh
# Checks the header and the libraries in build/ as programs in C and C++ see them. CC and CXX come from the environment.
cd "$(dirname "$0")/../.." || exit 1
cc=${CC:-cc} cxx=${CXX:-c++}
so=build/libhttpdown.so
warnings="-Wall -Wextra -Wpedantic -Werror"
# What Rust's std needs: cargo rustc --lib --crate-type staticlib -- --print native-static-libs
static_libs="-lgcc_s -lutil -lrt -lpthread -lm -ldl -lc"
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

symbols() { nm -D --defined-only "$1" | awk '{ print $3 }' | LC_ALL=C sort; }
dynamic() { readelf -d "$so" | grep -F -- "$1"; }

# What is exported.
symbols "$so" >"$out/exported"
"$cc" -E -P include/httpdown.h | grep -oE '\bhttpdown_[a-z0-9_]+ *\(' | tr -d ' (' | LC_ALL=C sort -u >"$out/declared"
check "the exported symbols are those of tests/abi/symbols.txt" diff tests/abi/symbols.txt "$out/exported"
check "what the header declares is what is exported" diff "$out/declared" "$out/exported"
check "the SONAME is libhttpdown.so.0" dynamic "soname: [libhttpdown.so.0]"
check "the library stays loaded (NODELETE)" dynamic NODELETE

# The header, alone and twice.
echo '#include <httpdown.h>' >"$out/once.c"
printf '#include <httpdown.h>\n#include <httpdown.h>\n' >"$out/twice.c"
echo '#include <httpdown.hpp>' >"$out/once.cpp"
printf '#include <httpdown.hpp>\n#include <httpdown.hpp>\n' >"$out/twice.cpp"
compiles() { # COMPILER STANDARD DIALECT FILE
    # shellcheck disable=SC2086 # several words
    $1 -std="$2" $warnings -Iinclude -Ibindings/cpp -fsyntax-only -x "$3" "$4"
}
also() { command -v "$1" >/dev/null && echo "$1"; }
for compiler in "$cc" $(also clang); do
    for standard in c99 c11 c17; do
        for file in once twice; do
            check "$compiler -std=$standard: httpdown.h $file" compiles "$compiler" $standard c "$out/$file.c"
        done
    done
done
for compiler in "$cxx" $(also clang++); do
    for standard in c++11 c++17 c++20; do
        for file in once twice; do
            check "$compiler -std=$standard: httpdown.h $file" compiles "$compiler" $standard c++ "$out/$file.c"
            [ $standard = c++11 ] && continue
            for flag in -fexceptions -fno-exceptions -fno-rtti -Weffc++; do
                check "$compiler -std=$standard $flag: httpdown.hpp $file" \
                    compiles "$compiler $flag" $standard c++ "$out/$file.cpp"
            done
        done
    done
done

# Sizes, offsets and numbers; and that both libraries can be linked and run.
links() { # COMPILER STANDARD DIALECT LIBRARIES...
    compiler=$1 standard=$2 dialect=$3
    shift 3
    rm -f "$out/abi"
    # shellcheck disable=SC2086 # several words
    "$compiler" -std="$standard" $warnings -Iinclude -x "$dialect" tests/abi/abi.c -x none "$@" -o "$out/abi" &&
        "$out/abi"
}
check "the layout, in C, with the shared library" links "$cc" c11 c -Lbuild -lhttpdown -Wl,-rpath,"$PWD/build"
check "the layout, in C++, with the shared library" links "$cxx" c++17 c++ -Lbuild -lhttpdown -Wl,-rpath,"$PWD/build"
# shellcheck disable=SC2086 # several words
check "a program with the static library" links "$cc" c11 c build/libhttpdown.a $static_libs

# A program that brings names of its own must not meet them here: whatever is global is ours, or mangled by Rust, or of
# the compiler's own runtime (which begins with two underscores), or has the version of aws-lc in it.
strangers() {
    ! nm -g --defined-only build/libhttpdown.a 2>/dev/null |
        awk 'NF == 3 && $3 !~ /^(httpdown_|_R|_ZN|anon\.|__|DW\.ref\.|aws_lc_[0-9]+_[0-9]+_[0-9]+_)/ { print $3 }' | sort -u | grep .
}
check "the static library's global names cannot clash" strangers

echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
