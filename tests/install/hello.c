#include <httpdown.h>
#include <stdio.h>

static void hello(httpdown_request *request, void *user_data) {
    (void)user_data;
    httpdown_reply_text(request, 200, "Hello, World!"); /* ends the request */
}
static void on_phase(const httpdown_server *server, int phase, void *user_data) {
    (void)user_data;
    char addr[64];
    if (phase != HTTPDOWN_PHASE_SERVING || httpdown_local_addr(server, 0, addr, sizeof addr) != 0) return;
    printf("http://%s/\n", addr);
    fflush(stdout);
}
int main(void) {
    char error[256] = "";
    httpdown_options options = {
        .struct_size = sizeof options,
        .addr = "127.0.0.1:0",
        .handler = hello,
        .on_phase = on_phase,
        .stop_timeout_ms = 10000,
    };
    int status = httpdown_run(&options, NULL, error, sizeof error); /* until TERM or INT */
    if (status != 0) fprintf(stderr, "%s: %s\n", httpdown_status_string(status), error);
    return status != 0;
}
