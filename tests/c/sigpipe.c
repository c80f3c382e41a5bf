/* A program that leaves SIGPIPE at its default, and clients that vanish within a response: it must not die. */
#include "test.h"

static void at_once(httpdown_request *request) {
    static char body[1 << 20];
    httpdown_reply_borrowed(request, 200, NULL, 0, body, sizeof body, NULL, NULL);
}

static void in_pieces(httpdown_request *request) {
    static char piece[10000];
    if (httpdown_reply_start(request, 200, NULL, 0) != 0) {
        httpdown_reply_abort(request);
        return;
    }
    for (int i = 0; i < 100; i++)
        if (httpdown_reply_write(request, piece, sizeof piece, HTTPDOWN_FOREVER, NULL) != 0) break;
    httpdown_reply_finish(request);
}

static void answers(httpdown_request *request, void *user_data) {
    (void)user_data;
    httpdown_bytes path = httpdown_request_path(request);
    if (httpdown_bytes_equal(path, "/pieces")) in_pieces(request);
    else if (httpdown_bytes_equal(path, "/whole")) at_once(request);
    else hello(request, NULL);
}

static void *vanishes(void *argument) {
    fixture *f = argument;
    for (int i = 0, count = scaled(100); i < count; i++) {
        int fd = dial(f->server);
        put(fd, i & 1 ? GET("/pieces") : GET("/whole"));
        char some[5000];
        if (i & 2) CHECK(recv(fd, some, sizeof some, 0) >= 0);
        if (i & 4) shutdown(fd, SHUT_RD);
        if (i & 8) reset(fd);
        else close(fd);
    }
    return NULL;
}

static void clients_may_vanish(void) {
    struct sigaction action;
    CHECK(signal(SIGPIPE, SIG_DFL) != SIG_ERR);
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, answers);
    httpdown_server *server = start(&options);
    pthread_t clients[4];
    for (int i = 0; i < 4; i++) clients[i] = spawn(vanishes, f);
    for (int i = 0; i < 4; i++) join(clients[i]);
    get(server, 200, "Hello, World!");
    httpdown_stop_report report = end_server(f, 0);
    EQUAL(report.failed, 0);
    EQUAL(report.killed, 0);
    CHECK(report.gone > 0);
    CHECK(sigaction(SIGPIPE, NULL, &action) == 0 && action.sa_handler == SIG_DFL); /* and it is still so */
    free_fixture(f);
}

/* The same while the server stops. */
static void clients_may_vanish_during_a_stop(void) {
    for (int round = 0, rounds = scaled(20); round < rounds; round++) {
        fixture *f = new_fixture();
        httpdown_options options = options_for(f, answers);
        httpdown_server *server = start(&options);
        int fds[16];
        for (int i = 0; i < 16; i++) {
            fds[i] = dial(server);
            put(fds[i], i & 1 ? GET("/pieces") : GET("/whole"));
        }
        EQUAL(httpdown_stop_begin(server), 0);
        for (int i = 0; i < 16; i++) {
            if (i & 2) reset(fds[i]);
            else close(fds[i]);
        }
        end_server(f, 0);
        free_fixture(f);
    }
}

/* A client that resets after each prefix of its request. */
static void clients_may_reset_at_every_byte(void) {
    static const char request[] =
        "POST /whole HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, answers);
    httpdown_server *server = start(&options);
    for (size_t i = 0; i < sizeof request; i++) {
        for (int hard = 0; hard < 2; hard++) {
            int fd = dial(server);
            put_bytes(fd, request, i);
            if (hard) reset(fd);
            else close(fd);
        }
    }
    get(server, 200, "Hello, World!");
    end_server(f, 0);
    free_fixture(f);
}

int main(int argc, char **argv) {
    (void)argc;
    tests_chosen = argv + 1;
    RUN(clients_may_vanish);
    RUN(clients_may_vanish_during_a_stop);
    RUN(clients_may_reset_at_every_byte);
    return test_end(argv[0]);
}
