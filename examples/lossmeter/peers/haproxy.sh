#!/bin/sh
# HAProxy in the foreground, with a master and a worker: haproxy.sh 127.0.0.1:8080. Stop it with USR1. With the paths of
# a certificate and its key behind the address, it speaks TLS. The answer to everything is "Hello, World!".
set -e
dir=$(cd "$(dirname "$0")/../../.." && pwd)/build/peers/haproxy/$1
mkdir -p "$dir"
tls=
[ -z "$2" ] || { cat "$2" "$3" >"$dir/tls.pem" && tls="ssl crt $dir/tls.pem"; }
cat >"$dir/haproxy.cfg" <<END
global
    maxconn 4000
defaults
    mode http
    timeout client 60s
    timeout http-keep-alive 60s
frontend hello
    bind $1 $tls
    http-request return status 200 content-type text/plain string "Hello, World!"
END
exec haproxy -W -db -f "$dir/haproxy.cfg"
