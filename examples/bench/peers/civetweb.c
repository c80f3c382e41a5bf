/* civetweb: a thread for each connection. Head and body go in one write. */
#include <civetweb.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int hello(struct mg_connection *connection) {
    static const char close[] = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 13\r\n\r\nHello, World!";
    static const char keep[] = "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 13\r\n\r\nHello, World!";
    const struct mg_request_info *info = mg_get_request_info(connection);
    if (strcmp(info->request_method, "GET") != 0) return 0;
    const char *wish = mg_get_header(connection, "Connection");
    if (wish != NULL && strcmp(wish, "close") == 0) mg_write(connection, close, sizeof close - 1);
    else mg_write(connection, keep, sizeof keep - 1);
    return 1; /* it is answered */
}

int main(int argc, char **argv) {
    if (argc != 2) return fprintf(stderr, "usage: civetweb PORT\n"), 2;
    char addr[64];
    snprintf(addr, sizeof addr, "127.0.0.1:%s", argv[1]);
    const char *options[] = {"listening_ports", addr, "num_threads", "128", "enable_keep_alive", "yes",
                             "keep_alive_timeout_ms", "3600000", "request_timeout_ms", "3600000", "tcp_nodelay", "1",
                             "connection_queue", "1000", "listen_backlog", "1000", NULL};
    mg_init_library(0);
    struct mg_callbacks callbacks = {.begin_request = hello};
    if (mg_start(&callbacks, NULL, options) == NULL) return fprintf(stderr, "civetweb does not start\n"), 1;
    for (;;) pause();
}
