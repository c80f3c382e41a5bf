#!/bin/sh
# Makes certificates to try TLS with, and to test it: `make certs`. Nobody should trust them, and they end after 30 days.
#
#     examples/certs.sh [FOLDER]
#
# ca.pem has issued the others. server.pem and server-key.pem are for localhost, 127.0.0.1 and ::1; client.pem and
# client-key.pem for a client. Needs the openssl program.
set -eu
folder=${1:-build/certs}
command -v openssl >/dev/null || { echo "certs: no openssl program"; exit 77; }
mkdir -p "$folder"
cd "$folder"
umask 077
ec="-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
# shellcheck disable=SC2086 # several words
{
    openssl req -x509 $ec -keyout ca-key.pem -out ca.pem -days 30 -subj "/CN=httpdown test CA"
    for who in server client; do
        case $who in
            server) name=localhost alt=DNS:localhost,IP:127.0.0.1,IP:::1 use=serverAuth ;;
            client) name=alice alt=email:alice@example.com use=clientAuth ;;
        esac
        printf 'subjectAltName=%s\nextendedKeyUsage=%s\n' "$alt" "$use" >$who.ext
        openssl req $ec -keyout $who-key.pem -out $who.csr -subj "/CN=$name"
        openssl x509 -req -in $who.csr -CA ca.pem -CAkey ca-key.pem -CAcreateserial -days 30 -extfile $who.ext -out $who.pem
    done
} 2>openssl.log || { cat openssl.log; exit 1; }
rm -f ./*.csr ./*.ext ./*.srl openssl.log
echo "$folder: ca.pem, server.pem, server-key.pem, client.pem, client-key.pem"
