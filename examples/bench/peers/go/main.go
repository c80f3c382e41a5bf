// Go's net/http: main ADDRESS PROCESSORS [CERTIFICATE KEY], with TLS if it has these. GET /sleep/MS: answers after so
// many milliseconds. GET /bytes/N: so many bytes. POST /upload: reads the body.
package main

import (
	"io"
	"log"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"time"
)

// Like hello.c.
var zeroes = make([]byte, 65536)

func main() {
	processors, err := strconv.Atoi(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	runtime.GOMAXPROCS(processors)
	hello := func(w http.ResponseWriter, r *http.Request) {
		_, _, _ = r.Method, r.URL.Path, r.Header.Get("Accept")
		io.WriteString(w, "Hello, World!")
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", hello)
	mux.HandleFunc("/sleep/", func(w http.ResponseWriter, r *http.Request) {
		ms, err := strconv.Atoi(r.URL.Path[len("/sleep/"):])
		if err != nil {
			http.Error(w, "not a number", http.StatusBadRequest)
			return
		}
		time.Sleep(time.Duration(ms) * time.Millisecond)
		hello(w, r)
	})
	mux.HandleFunc("/bytes/", func(w http.ResponseWriter, r *http.Request) {
		left, err := strconv.Atoi(r.URL.Path[len("/bytes/"):])
		if err != nil {
			http.Error(w, "not a number", http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Length", strconv.Itoa(left))
		w.Header().Set("Content-Type", "application/octet-stream")
		for left > 0 {
			piece := zeroes
			if left < len(piece) {
				piece = piece[:left]
			}
			if _, err := w.Write(piece); err != nil {
				return // gone
			}
			left -= len(piece)
		}
	})
	mux.HandleFunc("/upload", func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err == nil {
			hello(w, r)
		}
	})
	if len(os.Args) > 3 {
		log.Fatal(http.ListenAndServeTLS(os.Args[1], os.Args[3], os.Args[4], mux))
	}
	log.Fatal(http.ListenAndServe(os.Args[1], mux))
}
