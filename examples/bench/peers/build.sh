#!/bin/sh
# Builds the servers to compare with into build/bench, as far as what they need is there or, as root, can be installed
# from the distribution. What cannot be had is named; `bench` skips it.
cd "$(dirname "$0")/../../.." || exit 1
peers=examples/bench/peers
mkdir -p build/bench
header() { printf '#if !__has_include(<%s>)\n#error\n#endif\n' "$1" | ${CC:-cc} -E - >/dev/null 2>&1; }

missing=
for pair in valgrind:valgrind strace:strace nginx:nginx-light go:golang-go openssl:openssl; do
    PATH=$PATH:/usr/sbin command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair##*:}"
done
for pair in microhttpd.h:libmicrohttpd-dev event2/http.h:libevent-dev h2o/http1.h:libh2o-evloop-dev openssl/ssl.h:libssl-dev \
    civetweb.h:libcivetweb-dev boost/beast/http.hpp:libboost-dev; do
    header "${pair%%:*}" || missing="$missing ${pair##*:}"
done
if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq && apt-get install -qq -y --no-install-recommends $missing
    else
        echo "missing, and not installed without root and apt-get:$missing"
    fi
fi

[ -e build/certs/server.pem ] || examples/certs.sh build/certs

# build HEADER FILE COMPILER LIBRARIES, unless it has been built since the file was changed.
build() {
    name=${2%.*}
    { [ ! build/bench/"$name" -nt "$peers/$2" ] && header "$1"; } || return
    $3 -O2 -Wall -Wextra "$peers/$2" -o build/bench/"$name" $4 || echo "$name does not build"
}
cc=${CC:-cc}
build sys/epoll.h epoll.c "$cc"
build microhttpd.h libmicrohttpd.c "$cc" -lmicrohttpd
build event2/http.h libevent.c "$cc" -levent
build h2o/http1.h libh2o.c "$cc -DH2O_USE_LIBUV=0 -Wno-unused-parameter" -lh2o-evloop
build civetweb.h civetweb.c "$cc" -lcivetweb
build boost/beast/http.hpp beast.cpp "${CXX:-c++} -std=c++17" -lpthread
if command -v go >/dev/null && [ ! build/bench/go -nt $peers/go/main.go ]; then
    GOCACHE="$PWD/build/bench/go-cache" go build -o build/bench/go $peers/go/main.go || echo "go does not build"
fi
exit 0
