// A client for ../interop.py, called like client.py: net/http and crypto/tls of Go.
package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
)

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func ask(client *http.Client, method, url string, body io.Reader) {
	request, err := http.NewRequest(method, url, body)
	must(err)
	response, err := client.Do(request)
	must(err)
	if response.StatusCode != 200 {
		must(fmt.Errorf("%s %s: %s", method, url, response.Status))
	}
	_, err = io.Copy(os.Stdout, response.Body)
	must(err)
	must(response.Body.Close())
}

func main() {
	ca, version, what, rest := os.Args[1], os.Args[2], os.Args[3], os.Args[4:]
	pem, err := os.ReadFile(ca)
	must(err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	number := map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}[version]
	client := &http.Client{Transport: &http.Transport{
		// Offers HTTP/2 too, as it does by default.
		ForceAttemptHTTP2: true,
		DisableKeepAlives: what != "talk",
		TLSClientConfig: &tls.Config{
			RootCAs:            roots,
			MinVersion:         number,
			MaxVersion:         number,
			ClientSessionCache: tls.NewLRUClientSessionCache(1),
		},
	}}
	if what == "talk" {
		upload, err := os.ReadFile(rest[1])
		must(err)
		ask(client, "GET", rest[0], nil)
		ask(client, "POST", rest[0]+"echo", bytes.NewReader(upload))
		ask(client, "GET", rest[0]+"bytes/1000000", nil)
		return
	}
	for _, url := range rest {
		ask(client, "GET", url, nil)
	}
}
