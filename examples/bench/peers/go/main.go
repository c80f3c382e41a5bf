// Go's net/http: main ADDRESS PROCESSORS. GET /sleep/MS: answers after so many milliseconds.
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
	log.Fatal(http.ListenAndServe(os.Args[1], mux))
}
