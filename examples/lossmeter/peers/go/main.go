// Go's net/http, stopped as its documentation shows it: Server.Shutdown. Its arguments are the address and, for TLS, the
// files of a certificate and its key.
//
// GET anything: "Hello, World!". POST /echo: the body. GET /bytes/N: so many zeroes.
package main

import (
	"context"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
)

func main() {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "Hello, World!")
	})
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Write(body)
	})
	mux.HandleFunc("/bytes/", func(w http.ResponseWriter, r *http.Request) {
		count, err := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/bytes/"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Length", strconv.Itoa(count))
		w.Write(make([]byte, count))
	})
	server := http.Server{Addr: os.Args[1], Handler: mux}

	stopped := make(chan struct{})
	go func() {
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGTERM)
		<-signals
		if err := server.Shutdown(context.Background()); err != nil {
			log.Print(err)
		}
		close(stopped)
	}()
	serve := server.ListenAndServe
	if len(os.Args) > 2 {
		serve = func() error { return server.ListenAndServeTLS(os.Args[2], os.Args[3]) }
	}
	if err := serve(); err != http.ErrServerClosed {
		log.Fatal(err)
	}
	<-stopped
}
