#!/bin/sh
# Installs what the tests need beyond Rust, a C compiler and Python 3: from the distribution as root, and into a
# virtualenv under build/ as anybody. What cannot be had is named; its tests are then skipped.
cd "$(dirname "$0")/.." || exit 1
missing= balancers=
for pair in valgrind:valgrind pkg-config:pkg-config g++:g++ setarch:util-linux nm:binutils cmake:cmake openssl:openssl \
    curl:curl wget:wget gnutls-cli:gnutls-bin systemd-socket-activate:systemd; do
    command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair##*:}"
done
# Balancers are where only root looks for programs.
for balancer in nginx haproxy; do
    PATH="$PATH:/usr/sbin" command -v $balancer >/dev/null || balancers="$balancers $balancer"
done
"${PYTHON:-python3}" -c 'import ensurepip' 2>/dev/null || missing="$missing python3-venv"
for pair in wslay/wslay.h:libwslay-dev nettle/sha1.h:nettle-dev; do
    echo "#include <${pair%%:*}>" | ${CC:-cc} -E -x c - >/dev/null 2>&1 || missing="$missing ${pair##*:}"
done
# The distribution's own Python, for a libcurl that has GnuTLS.
! /usr/bin/python3 -c '' 2>/dev/null || /usr/bin/python3 -c 'import pycurl' 2>/dev/null || missing="$missing python3-pycurl"
if [ -n "$missing$balancers" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq && apt-get install -qq -y --no-install-recommends $missing $balancers
        # The distribution starts what it installs; nobody here wants a server on port 80.
        for balancer in $balancers; do
            [ ! -d /run/systemd/system ] || systemctl disable --quiet --now $balancer
        done
    else
        echo "missing, and not installed without root and apt-get:$missing$balancers"
    fi
fi
# Quick, if it is all there.
pip() { build/venv/bin/pip install --quiet --disable-pip-version-check --timeout 20 --retries 2 "$@"; }
"${PYTHON:-python3}" -m venv build/venv &&
    pip 'pytest>=8,<9' 'mypy>=1.10,<2' 'hatchling>=1.24,<2' ||
    echo "no virtualenv with pytest, mypy and hatchling in build/venv"
# Not everywhere can these be had; few tests need them.
pip gevent eventlet || echo "no gevent and eventlet in build/venv"
# WebSocket: a client, the protocol for our example, and the cases of the Autobahn test suite.
pip 'websockets>=13,<18' 'wsproto>=1.2,<2' 'kosoku>=0.1,<0.2' ||
    echo "no websockets, wsproto and kosoku in build/venv"
exit 0
