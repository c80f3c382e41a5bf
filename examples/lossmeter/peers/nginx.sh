#!/bin/sh
# nginx in the foreground, on the address that is given: nginx.sh 127.0.0.1:8080. Stop it with QUIT. With the absolute
# paths of a certificate and its key behind the address, it speaks TLS. With DAEMON=on in the environment, it goes into
# the background, and its number is printed: in the foreground, it ignores USR2 as long as its parent lives.
# GET /: "Hello, World!". GET /bytes/8000000: so many zeroes. There is no /echo: a body is read, and "Hello, World!" the answer.
set -e
nginx=$(command -v nginx) # With its path, because USR2 makes nginx execute this anew.
prefix=$(cd "$(dirname "$0")/../../.." && pwd)/build/peers/nginx
dir=$prefix/$1
mkdir -p "$dir/bytes"
[ -s "$prefix/8000000" ] || { head -c 8000000 /dev/zero >"$prefix/$$" && mv "$prefix/$$" "$prefix/8000000"; }
ln -sf "$prefix/8000000" "$dir/bytes/8000000"
tls=
[ -z "$2" ] || tls="ssl; ssl_certificate $2; ssl_certificate_key $3"
cat >"$dir/nginx.conf" <<EOF
daemon ${DAEMON:=off};
pid $dir/pid;
error_log stderr error;
worker_processes 2;
events { worker_connections 1024; }
http {
    access_log off;
    keepalive_requests 1000000;
    client_max_body_size 100m;
    client_body_temp_path $dir/body;
    server {
        listen $1 $tls;
        location / { return 200 "Hello, World!"; }
        location = /echo { return 200 "Hello, World!"; }
        location /bytes/ { root $dir; }
    }
}
EOF
[ "$DAEMON" = on ] || exec "$nginx" -p "$dir" -c "$dir/nginx.conf" -e stderr
rm -f "$dir/pid"
"$nginx" -p "$dir" -c "$dir/nginx.conf" -e stderr
until [ -s "$dir/pid" ]; do sleep 0.01; done
echo "pid $(cat "$dir/pid")"
