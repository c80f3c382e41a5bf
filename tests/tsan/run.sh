#!/bin/sh
# Runs C programs over the library under ThreadSanitizer, with stable Rust.
#
#     tests/tsan/run.sh
#
# `stop` does everything at once and must be clean; `planted` has a data race, which must be found, or a clean run would
# mean nothing. Ends with `N passed, N failed`; the exit status says whether all passed. The sanitizer needs gcc or clang
# for the C side (CC), and setarch, because its memory layout does not go with much address randomisation.
set -u
cd "$(dirname "$0")/../.." || exit 2

CC=${CC:-cc}
target=x86_64-unknown-linux-gnu
out=build/tsan
library=$out/target/$target/release/libhttpdown.a
mkdir -p "$out"

echo "building the library with ThreadSanitizer"
# Without link-time optimization, which takes away the names that are looked for below. Without TLS, whose cryptography
# is C and assembler, which the sanitizer does not see.
CARGO_PROFILE_RELEASE_LTO=false CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer" CARGO_TARGET_DIR="$out/target" \
    "${CARGO:-cargo}" build --release --quiet --lib --target $target --no-default-features --features capi || exit 2
runtime=$(find "$(rustc --print sysroot)/lib/rustlib/$target/lib" -name 'librustc*_rt.tsan.a' | head -n 1)
test -n "$runtime" || { echo "this Rust has no ThreadSanitizer runtime"; exit 2; }

symbols=$out/symbols
nm "$library" 2>/dev/null | awk '$1 == "U" { print $2 }' | sort -u >"$symbols"
for symbol in __tsan_func_entry __tsan_read8 __tsan_atomic64_fetch_sub; do
    grep -qx $symbol "$symbols" || { echo "the sanitizer is not on: no $symbol in the library"; exit 1; }
done

# What stands between our code and std's: see order.c. The names have a hash of the compiler in them.
wraps=-Wl,--wrap=__tsan_atomic64_fetch_sub
names=
# wrap MACRO PATTERN
wrap() {
    symbol=$(grep -E "$2" "$symbols")
    # Not there: never called, and then there is nothing to wrap but a name.
    if test -z "$symbol"; then
        symbol=httpdown_none_$1
        wraps="$wraps -Wl,--defsym=$symbol=0"
    fi
    test "$(echo "$symbol" | wc -l)" -eq 1 || { echo "several symbols for $2"; exit 1; }
    wraps="$wraps -Wl,--wrap=$symbol"
    names="$names -D$1=$symbol"
}
wrap LOCK_CONTENDED '^_R.*3std3sys4sync5mutex5futex.*5Mutex14lock_contended$'
wrap CONDVAR_WAIT '^_R.*3std3sys4sync7condvar5futex.*7Condvar4wait$'
wrap CONDVAR_WAIT_TIMEOUT '^_R.*3std3sys4sync7condvar5futex.*7Condvar12wait_timeout$'
wrap READ_CONTENDED '^_R.*3std3sys4sync6rwlock5futex.*6RwLock14read_contended$'
wrap WRITE_CONTENDED '^_R.*3std3sys4sync6rwlock5futex.*6RwLock15write_contended$'
case $names in *LOCK_CONTENDED=httpdown_none*) echo "std's mutex has changed: see order.c"; exit 1 ;; esac

# The C side is compiled with the sanitizer too, but linked with the runtime that Rust's side was made for.
build() {
    $CC -std=c11 -g -O1 -fsanitize=thread -Wall -Wextra -Wpedantic -Werror -Iinclude -c "tests/tsan/$1.c" \
        -o "$out/$1.o" || exit 2
    # shellcheck disable=SC2086 # words
    $CC -std=c11 -g -O1 $names -c tests/tsan/order.c -o "$out/order.o" || exit 2
    # shellcheck disable=SC2086
    $CC "$out/$1.o" "$out/order.o" "$library" $wraps -Wl,--whole-archive "$runtime" -Wl,--no-whole-archive \
        -lpthread -lm -ldl -lgcc_s -o "$out/$1" || exit 2
    nm "$out/$1" | grep -q ' T __tsan_init$' || { echo "$1: the sanitizer is not on"; exit 1; }
}

run() {
    TSAN_OPTIONS="exitcode=66 halt_on_error=0 second_deadlock_stack=1 suppressions=tests/tsan/suppressions" \
        timeout 300 setarch -R "$out/$1" >"$out/$1.log" 2>&1
}

passed=0
failed=0
build stop
run stop
status=$?
if [ $status -eq 0 ]; then
    passed=$((passed + 1))
    echo "stop: clean: $(tail -n 1 "$out/stop.log")"
else
    failed=$((failed + 1))
    echo "stop: status $status; the first report of $(grep -c 'WARNING: ThreadSanitizer' "$out/stop.log"), all in $out/stop.log:"
    sed -n '/WARNING: ThreadSanitizer/,/SUMMARY/p' "$out/stop.log" | head -n 80
    grep -v '^ ' "$out/stop.log" | head -n 20
fi

build planted
run planted
status=$?
# The race is ours: in the handler on one side, in the program's own thread on the other.
if [ $status -eq 66 ] && grep -q '#0 handler .*planted.c' "$out/planted.log" &&
    grep -q '#0 counts_too .*planted.c' "$out/planted.log"; then
    passed=$((passed + 1))
    echo "planted: the race was found"
else
    failed=$((failed + 1))
    echo "planted: status $status: the race was NOT found, so the other result means nothing"
    head -n 40 "$out/planted.log"
fi

echo "$passed passed, $failed failed"
test "$failed" -eq 0
