#!/bin/sh
# Compiles the C tests into build/tests, and runs them: all, or those that are named.
#
#     tests/c/run.sh [--valgrind] [NAME...]
#
# One line for each program, and at the end `N passed, N failed`; the exit status says whether all passed. With
# --valgrind the programs that valgrind has something to say about run under it, with smaller counts. CC and CFLAGS come
# from the environment.
set -u
cd "$(dirname "$0")/../.." || exit 2

valgrind=
if [ "${1-}" = --valgrind ]; then
    valgrind=yes
    shift
fi

CC=${CC:-cc}
out=build/tests
mkdir -p "$out"
test -e build/libhttpdown.so.0 || make lib || exit 2
# A copy: the library may be made anew while tests run.
cp build/libhttpdown.so.0 "$out/new.$$" && mv -f "$out/new.$$" "$out/libhttpdown.so.0" || exit 2

passed=0
failed=0
failures=

# report NAME STATUS
report() {
    if [ "$2" -eq 0 ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        failures="$failures $1"
        echo "FAILED: $1"
    fi
}

# compile SOURCE PROGRAM [STANDARD]
compile() {
    # shellcheck disable=SC2086 # CFLAGS are words
    $CC -std="${3-c11}" -O1 -g ${CFLAGS-} -Wall -Wextra -Wpedantic -Werror -Iinclude -Itests/c "$1" -o "$2" \
        "$out/libhttpdown.so.0" -lpthread -Wl,-rpath,'$ORIGIN'
}

run_program() {
    if [ -n "$valgrind" ]; then
        # The children of the tests fork, and so are under valgrind too. Fair scheduling, because the library's threads
        # hand work to each other.
        HTTPDOWN_TEST_SCALE=${HTTPDOWN_TEST_SCALE:-10} valgrind -q --error-exitcode=9 --leak-check=full \
            --show-leak-kinds=definite,possible --errors-for-leak-kinds=definite,possible --fair-sched=yes "$out/$1"
    else
        "$out/$1"
    fi
}

# A sketch is a whole program that runs until SIGTERM. It listens on a fixed port: another is put in its place.
run_sketch() {
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])') || return 1
    sed "s/127\.0\.0\.1:8080/127.0.0.1:$port/" "tests/c/$1.c" >"$out/$1.c"
    compile "$out/$1.c" "$out/$1" c99 || return 1
    "$out/$1" &
    pid=$!
    if python3 - "$port" <<'CLIENT'
import sys, time, urllib.error, urllib.request

opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
for attempt in range(600):  # until it listens
    try:
        answer = opener.open(f"http://127.0.0.1:{sys.argv[1]}/", timeout=60)
        break
    except urllib.error.URLError:
        time.sleep(0.05)
else:
    sys.exit("it never listened")
assert answer.status == 200, answer.status
assert answer.headers["content-type"] == "text/plain; charset=utf-8", answer.headers
assert answer.read() == b"Hello, World!"
CLIENT
    then
        kill -TERM "$pid"
        wait "$pid"
    else
        kill -KILL "$pid"
        return 1
    fi
}

if [ $# -gt 0 ]; then
    names="$*"
elif [ -n "$valgrind" ]; then
    names="lifecycle requests queue kill reentry"
else
    names=$(cd tests/c && ls ./*.c | sed 's|^\./||; s|\.c$||')
fi

for name in $names; do
    case $name in
    sketch_*)
        run_sketch "$name"
        status=$?
        test $status -ne 0 || echo "$name: 1 passed"
        ;;
    *)
        compile "tests/c/$name.c" "$out/$name" && run_program "$name"
        status=$?
        ;;
    esac
    report "$name" "$status"
done

echo "$passed passed, $failed failed${failures:+:$failures}"
test "$failed" -eq 0
