/* libmicrohttpd, one thread with epoll. */
#include <microhttpd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <arpa/inet.h>
#include <unistd.h>

static struct MHD_Response *response;

static enum MHD_Result hello(void *user_data, struct MHD_Connection *connection, const char *path, const char *method,
                             const char *version, const char *body, size_t *body_size, void **state) {
    (void)user_data, (void)path, (void)version, (void)body, (void)body_size;
    if (*state == NULL) { /* the head is there; the answer is due at the next call */
        *state = connection;
        return MHD_YES;
    }
    if (strcmp(method, "GET") != 0) return MHD_NO;
    MHD_lookup_connection_value(connection, MHD_HEADER_KIND, "Host");
    return MHD_queue_response(connection, MHD_HTTP_OK, response);
}

int main(int argc, char **argv) {
    if (argc != 2) return fprintf(stderr, "usage: libmicrohttpd PORT\n"), 2;
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[1]))};
    addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    response = MHD_create_response_from_buffer(13, "Hello, World!", MHD_RESPMEM_PERSISTENT);
    struct MHD_Daemon *daemon = MHD_start_daemon(MHD_USE_EPOLL_INTERNAL_THREAD, 0, NULL, NULL, hello, NULL,
                                                 MHD_OPTION_SOCK_ADDR, &addr, MHD_OPTION_CONNECTION_LIMIT, 19000u,
                                                 MHD_OPTION_LISTEN_BACKLOG_SIZE, 1024u, MHD_OPTION_END);
    if (daemon == NULL) return fprintf(stderr, "libmicrohttpd does not start\n"), 1;
    for (;;) pause();
}
