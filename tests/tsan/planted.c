/* A data race on purpose, through the library's threads: ThreadSanitizer must see it. */
#include "../c/test.h"

static long counter; /* no lock: that is the point */

static void handler(httpdown_request *request, void *user_data) {
    (void)user_data;
    counter++;
    httpdown_reply_text(request, 200, "counted");
}

static void *counts_too(void *argument) {
    (void)argument;
    counter++;
    return NULL;
}

int main(void) {
    alarm(120);
    httpdown_options options = {.struct_size = sizeof options, .addr = "127.0.0.1:0", .handler = handler};
    httpdown_server *server;
    if (httpdown_serve(&options, &server, NULL, 0) != 0) return 3;
    int port = port_of(server);
    for (int i = 0; i < 20; i++) {
        int fd = connect_to(port);
        pthread_t other = spawn(counts_too, NULL);
        put(fd, GET_CLOSE("/"));
        expect(fd, 200, "counted");
        close(fd);
        join(other);
    }
    httpdown_free(server);
    printf("planted: %ld\n", counter);
    return 0;
}
