/* The simple case, just as the interface was meant to look. */
#include <httpdown.h>
#include <stdio.h>

static void hello(httpdown_request *request, void *user_data) {
    (void)user_data;
    httpdown_reply_text(request, 200, "Hello, World!"); /* ends the request */
}
int main(void) {
    char error[256] = "";
    httpdown_options options = {
        .struct_size = sizeof options,
        .addr = "127.0.0.1:8080",
        .handler = hello,
        .stop_timeout_ms = 10000,
    };
    int status = httpdown_run(&options, NULL, error, sizeof error); /* until TERM or INT */
    if (status != 0) fprintf(stderr, "%s: %s\n", httpdown_status_string(status), error);
    return status != 0;
}
