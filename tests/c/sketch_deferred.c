/* The deferred case, just as the interface was meant to look. */
#include <httpdown.h>
#include <pthread.h>
#include <stdio.h>

static void *work(void *argument) {
    httpdown_request *request = argument;
    httpdown_reply_text(request, 200, "Hello, World!");
    return NULL;
}

static void hello(httpdown_request *request, void *user_data) {
    pthread_t t;
    (void)user_data;
    if (httpdown_request_defer(request) != 0) return;
    pthread_create(&t, NULL, work, request);
    pthread_detach(t);
}

int main(void) {
    char error[256] = "";
    httpdown_options options = {
        .struct_size = sizeof options,
        .addr = "127.0.0.1:8080",
        .handler = hello,
        .stop_timeout_ms = 10000,
    };
    int status = httpdown_run(&options, NULL, error, sizeof error);
    if (status != 0) fprintf(stderr, "%s: %s\n", httpdown_status_string(status), error);
    return status != 0;
}
