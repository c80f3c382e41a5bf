#!/bin/sh
# Counts the user-space instructions of a request, with httpdown and with hyper alone: the difference of two runs that
# differ in the number of requests, one after the other on one connection. Needs valgrind.
cd "$(dirname "$0")/.." || exit 2
cargo build --release --quiet --example price || exit 2
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
few=2000 many=12000 port=$((20000 + $$ % 10000))

# Asks COUNT times, once the server is there.
ask() {
    python3 - "$port" "$1" <<'PYTHON'
import socket, sys, time

port, count = map(int, sys.argv[1:])
for _ in range(300):
    try:
        client = socket.create_connection(("127.0.0.1", port))
        break
    except ConnectionRefusedError:
        time.sleep(0.1)
client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
for _ in range(count):
    client.sendall(b"GET / HTTP/1.1\r\nHost: localhost:8080\r\nUser-Agent: price\r\nAccept: */*\r\n\r\n")
    answer = b""
    while not answer.endswith(b"Hello, World!"):
        answer += client.recv(4096)
PYTHON
}

for server in hyper httpdown; do
    for count in $few $many; do
        port=$((port + 1))
        valgrind --tool=callgrind --callgrind-out-file="$scratch/$count" \
            target/release/examples/price $server 127.0.0.1:$port 2>"$scratch/log" &
        ask $count
        kill $!
        wait $! 2>/dev/null
    done
    sum() { sed -n 's/^totals: //p' "$scratch/$1"; }
    echo "$server: $((($(sum $many) - $(sum $few)) / (many - few))) instructions a request"
done
