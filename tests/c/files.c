/* Answers that are files. */
#include "test.h"

#include <fcntl.h>
#include <sys/stat.h>

#define CONTENT "0123456789"

static char path[64];

/* A file with CONTENT that has been there for a while. */
static void make_file(void) {
    snprintf(path, sizeof path, "/tmp/httpdown-c-files-%d.txt", getpid());
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    EQUAL(write(fd, CONTENT, sizeof CONTENT - 1), sizeof CONTENT - 1);
    const struct timespec times[2] = {{.tv_sec = 784111777}, {.tv_sec = 784111777}};
    EQUAL(futimens(fd, times), 0);
    close(fd);
}

static int opened(int flags) {
    int fd = open(path, flags | O_CLOEXEC);
    CHECK(fd >= 0);
    return fd;
}

static bool is_open(int fd) {
    return fcntl(fd, F_GETFD) >= 0;
}

/* What a handler has got back: the status of its call. */
static int result;

static void answers(httpdown_request *request, void *user_data) {
    httpdown_header header = {httpdown_str("x-own"), httpdown_str("yes")};
    httpdown_bytes target = httpdown_request_path(request);
    int pipes[2];
    if (httpdown_bytes_equal(target, "/all"))
        result = httpdown_reply_fd(request, 200, NULL, 0, opened(O_RDONLY), 0, HTTPDOWN_TO_END);
    else if (httpdown_bytes_equal(target, "/part"))
        result = httpdown_reply_fd(request, 203, &header, 1, opened(O_RDWR), 2, 3);
    else if (httpdown_bytes_equal(target, "/none"))
        result = httpdown_reply_fd(request, 200, NULL, 0, opened(O_RDONLY), 10, HTTPDOWN_TO_END);
    else if (httpdown_bytes_equal(target, "/behind"))
        result = httpdown_reply_fd(request, 200, NULL, 0, opened(O_RDONLY), 11, HTTPDOWN_TO_END);
    else if (httpdown_bytes_equal(target, "/too-long"))
        result = httpdown_reply_fd(request, 200, NULL, 0, opened(O_RDONLY), 8, 3);
    else if (httpdown_bytes_equal(target, "/overflow"))
        result = httpdown_reply_fd(request, 200, NULL, 0, opened(O_RDONLY), 8, HTTPDOWN_TO_END - 1);
    else if (httpdown_bytes_equal(target, "/writing"))
        result = httpdown_reply_fd(request, 200, NULL, 0, opened(O_WRONLY), 0, HTTPDOWN_TO_END);
    else if (httpdown_bytes_equal(target, "/closed"))
        result = httpdown_reply_fd(request, 200, NULL, 0, -1, 0, HTTPDOWN_TO_END);
    else if (httpdown_bytes_equal(target, "/pipe")) {
        EQUAL(pipe(pipes), 0);
        result = httpdown_reply_open_file(request, pipes[0], NULL, 0);
        CHECK(!is_open(pipes[0]));
        close(pipes[1]);
    } else if (httpdown_bytes_equal(target, "/file")) result = httpdown_reply_file(request, path, &header, 1);
    else if (httpdown_bytes_equal(target, "/open"))
        result = httpdown_reply_open_file(request, opened(O_RDONLY), &header, 1);
    else if (httpdown_bytes_equal(target, "/absent")) result = httpdown_reply_file(request, "/nonsense", NULL, 0);
    else if (httpdown_bytes_equal(target, "/null")) result = httpdown_reply_file(request, NULL, NULL, 0);
    else CHECK(false);
    gate_add(&((fixture *)user_data)->left);
}

static fixture *begin(int dispatch) {
    make_file();
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, answers);
    options.dispatch = dispatch;
    record_all(&options);
    start(&options);
    return f;
}

static void end(fixture *f) {
    end_server(f, 0);
    free_fixture(f);
    unlink(path);
}

static response ask(fixture *f, const char *method, const char *target, const char *fields) {
    char request[512];
    snprintf(request, sizeof request, "%s %s HTTP/1.1\r\nhost: test\r\nconnection: close\r\n%s\r\n", method,
             target, fields);
    int before = gate_value(&f->left), fd = dial(f->server);
    put(fd, request);
    response r = take_head(fd);
    if (strcmp(method, "HEAD") != 0) take_body(fd, &r);
    close(fd);
    gate_wait(&f->left, before + 1);
    return r;
}

static void bytes_of_a_file_are_sent(void) {
    const int modes[] = {HTTPDOWN_DISPATCH_POOL, HTTPDOWN_DISPATCH_INLINE};
    const struct {
        const char *target, *body;
        int status;
    } cases[] = {{"/all", CONTENT, 200}, {"/part", "234", 203}, {"/none", "", 200}};
    for (size_t mode = 0; mode < 2; mode++) {
        fixture *f = begin(modes[mode]);
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            response r = ask(f, "GET", cases[i].target, "");
            EQUAL(result, 0);
            EQUAL(r.status, cases[i].status);
            CHECK(r.whole && strcmp(r.body, cases[i].body) == 0);
            done(&r);
            r = ask(f, "HEAD", cases[i].target, "");
            EQUAL(strtoul(header_of(&r, "content-length"), NULL, 10), strlen(cases[i].body));
            done(&r);
        }
        response r = ask(f, "GET", "/part", "");
        CHECK(strcmp(header_of(&r, "x-own"), "yes") == 0);
        done(&r);
        end(f);
    }
}

static void what_cannot_be_sent_is_refused(void) {
    const char *targets[] = {"/behind", "/too-long", "/overflow", "/writing", "/closed", "/pipe", "/null"};
    fixture *f = begin(HTTPDOWN_DISPATCH_POOL);
    for (size_t i = 0; i < sizeof targets / sizeof *targets; i++) {
        response r = ask(f, "GET", targets[i], "");
        EQUAL(r.status, 500);
        EQUAL(result, HTTPDOWN_STATUS_INVALID_ARGUMENT);
        done(&r);
        char line[64];
        snprintf(line, sizeof line, "the answer to %s was refused", targets[i]);
        wait_told(f, HTTPDOWN_EVENT_LOG, HTTPDOWN_LOG_ERROR, line, 1);
    }
    end(f);
}

static void a_file_is_what_the_client_asks_for(void) {
    const char *date = "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT\r\n";
    fixture *f = begin(HTTPDOWN_DISPATCH_POOL);
    response r = ask(f, "GET", "/file", "");
    EQUAL(r.status, 200);
    CHECK(strcmp(r.body, CONTENT) == 0);
    CHECK(strcmp(header_of(&r, "content-type"), "text/plain; charset=utf-8") == 0);
    CHECK(strcmp(header_of(&r, "last-modified"), "Sun, 06 Nov 1994 08:49:37 GMT") == 0);
    CHECK(strcmp(header_of(&r, "x-own"), "yes") == 0);
    char tag[128];
    snprintf(tag, sizeof tag, "If-None-Match: %s\r\n", header_of(&r, "etag"));
    done(&r);
    const struct {
        const char *method, *target, *fields;
        int status;
    } cases[] = {
        {"GET", "/file", tag, 304},       {"GET", "/open", tag, 304},
        {"GET", "/file", date, 304},      {"GET", "/file", "Range: bytes=3-4\r\n", 206},
        {"HEAD", "/open", "", 200},       {"GET", "/open", "Range: bytes=10-\r\n", 416},
        {"POST", "/file", "", 405},       {"POST", "/open", "", 405},
        {"GET", "/absent", "", 404},      {"GET", "/open", "If-Match: \"x\"\r\n", 412},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        r = ask(f, cases[i].method, cases[i].target, cases[i].fields);
        EQUAL(r.status, cases[i].status);
        EQUAL(result, 0);
        if (r.status == 206) CHECK(strcmp(r.body, "34") == 0);
        done(&r);
    }
    end(f);
}

/* Whatever becomes of a call, its descriptor is the library's. */
static void descriptors_are_closed(void) {
    make_file();
    int fds[3];
    for (int i = 0; i < 3; i++) fds[i] = opened(O_RDONLY);
    EQUAL(httpdown_reply_fd(NULL, 200, NULL, 0, fds[0], 0, HTTPDOWN_TO_END), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    EQUAL(httpdown_reply_open_file(NULL, fds[1], NULL, 0), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    EQUAL(httpdown_reply_open_file((httpdown_request *)1, fds[2], NULL, 0), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    for (int i = 0; i < 3; i++) CHECK(!is_open(fds[i]));
    /* A number that is no descriptor is not closed: another thread may get that number meanwhile. */
    EQUAL(httpdown_reply_open_file(NULL, 12345, NULL, 0), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    unlink(path);
}

static void types_go_by_the_extension(void) {
    CHECK(httpdown_bytes_equal(httpdown_content_type("a/b.html"), "text/html; charset=utf-8"));
    CHECK(httpdown_bytes_equal(httpdown_content_type("B.JPG"), "image/jpeg"));
    CHECK(httpdown_bytes_equal(httpdown_content_type("\xff"), "application/octet-stream"));
    CHECK(httpdown_content_type(NULL).data == NULL);
}

int main(int argc, char **argv) {
    (void)argc;
    tests_chosen = argv + 1;
    RUN(bytes_of_a_file_are_sent);
    RUN(what_cannot_be_sent_is_refused);
    RUN(a_file_is_what_the_client_asks_for);
    RUN(descriptors_are_closed);
    RUN(types_go_by_the_extension);
    return test_end(argv[0]);
}
