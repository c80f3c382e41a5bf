/* libh2o with its own event loop. */
#include <errno.h>
#include <h2o.h>
#include <h2o/http1.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>

static h2o_globalconf_t config;
static h2o_context_t context;
static h2o_accept_ctx_t accepting;

static int hello(h2o_handler_t *handler, h2o_req_t *request) {
    static h2o_generator_t generator;
    (void)handler;
    if (!h2o_memis(request->method.base, request->method.len, H2O_STRLIT("GET"))) return -1;
    h2o_find_header_by_str(&request->headers, H2O_STRLIT("accept"), -1); /* Host is in request->authority */
    h2o_iovec_t body = h2o_iovec_init(H2O_STRLIT("Hello, World!"));
    request->res.status = 200;
    request->res.reason = "OK";
    request->res.content_length = body.len;
    h2o_start_response(request, &generator);
    h2o_send(request, &body, 1, H2O_SEND_STATE_FINAL);
    return 0;
}

static void on_accept(h2o_socket_t *listener, const char *error) {
    h2o_socket_t *socket;
    if (error != NULL) return;
    while ((socket = h2o_evloop_socket_accept(listener)) != NULL) h2o_accept(&accepting, socket);
}

int main(int argc, char **argv) {
    if (argc != 2) return fprintf(stderr, "usage: libh2o PORT\n"), 2;
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1]))};
    addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&addr, sizeof addr) != 0 || listen(fd, 1024) != 0) return perror("bind"), 1;

    h2o_config_init(&config);
    config.http1.req_timeout = 3600 * 1000; /* an idle connection stays */
    h2o_hostconf_t *host = h2o_config_register_host(&config, h2o_iovec_init(H2O_STRLIT("default")), 65535);
    h2o_pathconf_t *path = h2o_config_register_path(host, "/", 0);
    h2o_create_handler(path, sizeof(h2o_handler_t))->on_req = hello;
    h2o_context_init(&context, h2o_evloop_create(), &config);
    accepting.ctx = &context;
    accepting.hosts = config.hosts;
    h2o_socket_t *listener = h2o_evloop_socket_create(context.loop, fd, H2O_SOCKET_FLAG_DONT_READ);
    h2o_socket_read_start(listener, on_accept);
    while (h2o_evloop_run(context.loop, INT32_MAX) == 0 || errno == EINTR) continue;
    return 1;
}
