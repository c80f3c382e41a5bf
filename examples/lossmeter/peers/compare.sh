#!/bin/sh
# Measures build/hello beside all peers that can run here: compare.sh [OPTION OF LOSSMETER]... Those that cannot are
# named. gunicorn and uvicorn are looked for in build/venv-peers:
#     python3 -m venv build/venv-peers && build/venv-peers/bin/pip install gunicorn uvicorn
cd "$(dirname "$0")/../../.." || exit 2
lossmeter=build/rust/lossmeter
peers=examples/lossmeter/peers
python=build/venv-peers/bin
mkdir -p build/peers
skip() { echo "skipped: $1" >&2; }

set -- "$@" "httpdown=build/hello -addr {addr}" "hyper=$lossmeter --serve-peer {addr}"

if ! command -v go >/dev/null; then
    skip "go (golang-go is not installed)"
elif GOCACHE="$PWD/build/peers/go-cache" go build -o build/peers/go $peers/go/main.go; then
    set -- "$@" "go=build/peers/go {addr}"
else
    skip "go (does not build)"
fi

if command -v nginx >/dev/null; then
    set -- "$@" "nginx:QUIT=$peers/nginx.sh {addr}"
else
    skip "nginx (not installed)"
fi

if [ -x $python/gunicorn ]; then
    set -- "$@" "gunicorn=$python/gunicorn --chdir $peers -k gthread --threads 16 --workers 2 --log-level error --bind {addr} wsgi:app"
else
    skip "gunicorn (not in build/venv-peers)"
fi

if [ -x $python/uvicorn ]; then
    set -- "$@" "uvicorn=$python/uvicorn --app-dir $peers --host {ip} --port {port} --log-level error asgi:app"
else
    skip "uvicorn (not in build/venv-peers)"
fi

exec $lossmeter "$@"
