#!/bin/sh
# Runs every suite, or those named, and says at the end what passed. A suite that cannot run here (a tool is missing)
# exits with 77 and a line that says why; that counts as a failure where CI is set.
cd "$(dirname "$0")/.." || exit 1
export PYTHONDONTWRITEBYTECODE=1

# Most tests mostly wait.
export RUST_TEST_THREADS="${RUST_TEST_THREADS:-4}"
rust() { ${CARGO:-cargo} test --quiet --no-fail-fast; }
# The same tests once more, by Unix sockets.
unix() {
    (
        export HTTPDOWN_TEST_SOCKETS=unix
        ${CARGO:-cargo} test --quiet --no-fail-fast --lib \
            --test stop --test lossless --test extremes --test ledger --test upgrade &&
            tests/c/run.sh lifecycle cycles kill upgrade &&
            { ! build/venv/bin/python -c 'import pytest' 2>/dev/null || python_tests bindings/python/tests/test_server.py; }
    )
}
# And by TLS, but for those that write past their client's TLS.
secure() {
    HTTPDOWN_TEST_SOCKETS=tls ${CARGO:-cargo} test --quiet --no-fail-fast \
        --test lossless --test unread -- \
        --skip never_ceases_to_pipeline --skip ends_behind_an_answer
}
c() { tests/c/run.sh; }
valgrind() {
    command -v valgrind >/dev/null || { echo "skipped: no valgrind (make tools)"; return 77; }
    tests/c/run.sh --valgrind
}
tsan() { tests/tsan/run.sh; }
cpp() { tests/cpp/run.sh; }
abi() { tests/abi/check.sh; }
options() {
    "${PYTHON:-python3}" -c 'import tomllib' 2>/dev/null || { echo "skipped: no Python 3.11"; return 77; }
    "${PYTHON:-python3}" tests/options.py
}
install() { tests/install/check.sh; }
# A shell has what it runs beside others ignore SIGINT and SIGQUIT, and only a program can undo that. Tests of Ctrl-C need it.
interruptible() {
    "${PYTHON:-python3}" -c 'import os, signal, sys
for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(number, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])' "$@"
}
python_tests() {
    interruptible env PYTHONPATH=bindings/python build/venv/bin/python -X dev -m pytest -q -p no:cacheprovider "$@"
}
python() {
    build/venv/bin/python -c 'import pytest, mypy' 2>/dev/null || {
        echo "skipped: no build/venv with pytest and mypy (make tools)"
        return 77
    }
    python_tests bindings/python/tests &&
        build/venv/bin/python -m mypy --strict --cache-dir=build/mypy bindings/python/httpdown
}
programs() { interruptible "${PYTHON:-python3}" tests/programs.py; }
restarts() { "${PYTHON:-python3}" tests/restarts.py; }
balancers() { "${PYTHON:-python3}" examples/balancer.py --seconds 10 --jobs 2; }
interop() {
    for program in curl openssl; do
        command -v $program >/dev/null || { echo "skipped: no $program (make tools)"; return 77; }
    done
    "${PYTHON:-python3}" tests/interop.py
}
websocket() {
    build/venv/bin/python -c 'import kosoku, websockets, wsproto' 2>/dev/null || {
        echo "skipped: no build/venv with kosoku, websockets and wsproto (make tools)"
        return 77
    }
    printf '#include <wslay/wslay.h>\n#include <nettle/sha1.h>\n' | ${CC:-cc} -E -x c - >/dev/null 2>&1 || {
        echo "skipped: no wslay and nettle (make tools)"
        return 77
    }
    # The library is there.
    ${MAKE:-make} --no-print-directory -o "build/$(readlink build/libhttpdown.so)" build/websocket && interruptible build/venv/bin/python tests/websocket.py
}
loss() { "${PYTHON:-python3}" tests/loss.py; }
# Not among those that run without being asked for: it needs programs that take minutes to build.
gate() {
    command -v valgrind >/dev/null || { echo "skipped: no valgrind (make tools)"; return 77; }
    build/rust/bench --gate examples/bench/gate.json
}

# Some take a processor for minutes, and others mostly wait: the first of each pair begins with the second, and runs
# beside it, and beside those between them. (c and unix have their programs in the same place.)
BESIDE="c:rust python:c programs:secure valgrind:python cpp:python loss:abi tsan:options"
begin_beside() {
    mkdir -p build
    "$1" >"build/suite-$1.log" 2>&1 &
    eval "running_$1=$! began_$1=$(date +%s)"
}
end_beside() {
    eval "wait \$running_$1"
    code=$?
    cat "build/suite-$1.log"
    return $code
}

passed=0 failed=0 skipped=0 summary=
suites=${*:-rust c unix secure python programs restarts balancers interop websocket abi options install valgrind cpp loss tsan}
for suite in $suites; do
    for pair in $BESIDE; do
        case " $suites " in
            *" $suite "*" ${pair%:*} "*) [ "$suite" = "${pair#*:}" ] && begin_beside "${pair%:*}" ;;
        esac
    done
    printf '\n== %s\n' "$suite"
    eval "begin=\${began_$suite:-}"
    if [ -n "$begin" ]; then
        end_beside "$suite"
    else
        begin=$(date +%s)
        "$suite"
    fi
    code=$?
    case $code in
        0) passed=$((passed + 1)) verdict=ok ;;
        77) skipped=$((skipped + 1)) verdict=SKIPPED ;;
        *) failed=$((failed + 1)) verdict="FAILED ($code)" ;;
    esac
    summary="$summary$(printf '%-10s %5s s  %s' "$suite" $(($(date +%s) - begin)) "$verdict")
"
done
printf '\n%s\n%d passed, %d failed, %d skipped\n' "$summary" $passed $failed $skipped
[ $failed -eq 0 ] && { [ -z "${CI:-}" ] || [ $skipped -eq 0 ]; }
