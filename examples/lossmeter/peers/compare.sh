#!/bin/sh
# Measures build/hello beside all peers that can run here: compare.sh [OPTION OF LOSSMETER]... Those that cannot are
# named. With --tls, all of them get a certificate that is made for the run. With --restart, those are measured that can
# be restarted under load, in each way that they have. gunicorn and uvicorn are looked for in build/venv-peers:
#     python3 -m venv build/venv-peers && build/venv-peers/bin/pip install gunicorn uvicorn
cd "$(dirname "$0")/../../.." || exit 2
lossmeter=build/rust/lossmeter
peers=examples/lossmeter/peers
python=$PWD/build/venv-peers/bin
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

restart=
case " $* " in *" --restart "* | *" --restart="*) restart=1 ;; esac
upgrade="$peers/restart.sh upgrade {pid}"
reload="$peers/restart.sh reload {pid}"

set -- "$@" "httpdown=build/hello -addr {addr} $(tls -tls-cert -tls-key)"

if [ -n "$restart" ]; then
    skip "hyper, go (have no restart)"
else
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
fi

nginx="$peers/nginx.sh {addr} $cert $key"
if ! command -v nginx >/dev/null; then
    skip "nginx (not installed)"
elif [ -n "$restart" ]; then
    set -- "$@" "nginx-upgrade:QUIT=DAEMON=on $nginx" --restart-by "$upgrade WINCH QUIT"
    set -- "$@" "nginx-reload:QUIT=$nginx" --restart-by "$reload HUP"
else
    set -- "$@" "nginx:QUIT=$nginx"
fi

if [ -z "$restart" ]; then
    : # HAProxy has no paths of its own, and its stop is that of a proxy.
elif command -v haproxy >/dev/null; then
    set -- "$@" "haproxy-reload:USR1=$peers/haproxy.sh {addr} $cert $key" --restart-by "$reload USR2"
else
    skip "haproxy (not installed)"
fi

gunicorn="$python/gunicorn --chdir $PWD/$peers -k gthread --threads 16 --workers 2 --log-level error --bind {addr} $(tls --certfile --keyfile) wsgi:app"
if [ ! -x $python/gunicorn ]; then
    skip "gunicorn (not in build/venv-peers)"
elif [ -n "$restart" ]; then
    set -- "$@" "gunicorn-upgrade=$gunicorn" --restart-by "$upgrade TERM"
    set -- "$@" "gunicorn-reload=$gunicorn" --restart-by "$reload HUP"
else
    set -- "$@" "gunicorn=$gunicorn"
fi

uvicorn="$python/uvicorn --app-dir $peers --host {ip} --port {port} --log-level error $(tls --ssl-certfile --ssl-keyfile)"
if [ ! -x $python/uvicorn ]; then
    skip "uvicorn (not in build/venv-peers)"
elif [ -n "$restart" ]; then
    watched="build/peers/uvicorn/{ip}:{port}"
    set -- "$@" "uvicorn-workers=$uvicorn --workers 2 asgi:app" --restart-by "$reload HUP"
    set -- "$@" "uvicorn-reload=mkdir -p $watched && touch $watched/watched.py && $uvicorn --reload --reload-dir $watched asgi:app" \
        --restart-by "$peers/restart.sh touch {pid} $watched/watched.py"
else
    set -- "$@" "uvicorn=$uvicorn asgi:app"
fi

exec $lossmeter "$@"
