#!/bin/sh
# Measures build/hello beside all peers that can run here: compare.sh [OPTION OF LOSSMETER]... Those that cannot are
# named. With --tls, all of them get a certificate that is made for the run. gunicorn and uvicorn are looked for in
# build/venv-peers:
#     python3 -m venv build/venv-peers && build/venv-peers/bin/pip install gunicorn uvicorn
cd "$(dirname "$0")/../../.." || exit 2
lossmeter=build/rust/lossmeter
peers=examples/lossmeter/peers
python=build/venv-peers/bin
mkdir -p build/peers
skip() { echo "skipped: $1" >&2; }

cert='' key=''
case " $* " in *" --tls "* | *" --tls-no-resumption "*)
    cert=$PWD/build/peers/cert.pem key=$PWD/build/peers/key.pem
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout "$key" -out "$cert" -days 30 \
        -subj /CN=localhost -addext subjectAltName=DNS:localhost 2>/dev/null || exit 2
    ;;
esac
# The certificate and the key, behind the names of a server's own flags.
tls() { [ -z "$cert" ] || echo "$1 $cert $2 $key"; }

set -- "$@" "httpdown=build/hello -addr {addr} $(tls -tls-cert -tls-key)"

if [ -n "$cert" ]; then
    skip "hyper (has no TLS of its own)"
else
    set -- "$@" "hyper=$lossmeter --serve-peer {addr}"
fi

if ! command -v go >/dev/null; then
    skip "go (golang-go is not installed)"
elif GOCACHE="$PWD/build/peers/go-cache" go build -o build/peers/go $peers/go/main.go; then
    set -- "$@" "go=build/peers/go {addr} $cert $key"
else
    skip "go (does not build)"
fi

if command -v nginx >/dev/null; then
    set -- "$@" "nginx:QUIT=$peers/nginx.sh {addr} $cert $key"
else
    skip "nginx (not installed)"
fi

if [ -x $python/gunicorn ]; then
    set -- "$@" "gunicorn=$python/gunicorn --chdir $peers -k gthread --threads 16 --workers 2 --log-level error --bind {addr} $(tls --certfile --keyfile) wsgi:app"
else
    skip "gunicorn (not in build/venv-peers)"
fi

if [ -x $python/uvicorn ]; then
    set -- "$@" "uvicorn=$python/uvicorn --app-dir $peers --host {ip} --port {port} --log-level error $(tls --ssl-certfile --ssl-keyfile) asgi:app"
else
    skip "uvicorn (not in build/venv-peers)"
fi

exec $lossmeter "$@"
