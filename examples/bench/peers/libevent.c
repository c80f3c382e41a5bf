/* libevent's evhttp. */
#include <event2/buffer.h>
#include <event2/event.h>
#include <event2/http.h>
#include <stdio.h>
#include <stdlib.h>

static void hello(struct evhttp_request *request, void *user_data) {
    (void)user_data;
    evhttp_request_get_command(request);
    evhttp_request_get_uri(request);
    evhttp_find_header(evhttp_request_get_input_headers(request), "Host");
    evbuffer_add_reference(evhttp_request_get_output_buffer(request), "Hello, World!", 13, NULL, NULL);
    evhttp_send_reply(request, HTTP_OK, "OK", NULL);
}

int main(int argc, char **argv) {
    if (argc != 2) return fprintf(stderr, "usage: libevent PORT\n"), 2;
    struct event_base *base = event_base_new();
    struct evhttp *http = evhttp_new(base);
    evhttp_set_gencb(http, hello, NULL);
    if (evhttp_bind_socket(http, "127.0.0.1", (unsigned short)atoi(argv[1])) != 0) return perror("bind"), 1;
    return event_base_dispatch(base);
}
