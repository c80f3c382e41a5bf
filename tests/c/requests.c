/* A request as a handler sees it, and every way to answer it. */
#include "test.h"

/* A test's handler runs as `extra`, so that most tests are one function for each side. */
typedef void (*body_fn)(httpdown_request *request, fixture *f);
typedef struct {
    body_fn body;
} case_;

static void on_request(httpdown_request *request, void *user_data) {
    fixture *f = user_data;
    ((case_ *)f->extra)->body(request, f);
    gate_add(&f->left);
}

static fixture *begin_as(body_fn body, int dispatch) {
    fixture *f = new_fixture();
    case_ *c = malloc(sizeof *c);
    CHECK(c != NULL);
    c->body = body;
    f->extra = c;
    httpdown_options options = options_for(f, on_request);
    options.dispatch = dispatch;
    record_all(&options);
    start(&options);
    return f;
}

static fixture *begin(body_fn body) {
    return begin_as(body, HTTPDOWN_DISPATCH_POOL);
}

static httpdown_stop_report end_as(fixture *f, int status) {
    httpdown_stop_report report = end_server(f, status);
    free(f->extra);
    free_fixture(f);
    return report;
}

static httpdown_stop_report end(fixture *f) {
    return end_as(f, 0);
}

static bool is(httpdown_bytes bytes, const char *text) {
    bool equal = httpdown_bytes_equal(bytes, text);
    if (!equal) fprintf(stderr, "got \"%.*s\", not \"%s\"\n", (int)bytes.len, bytes.data != NULL ? bytes.data : "", text);
    return equal;
}

static httpdown_header field(const char *name, const char *value) {
    httpdown_header header = {httpdown_str(name), httpdown_str(value)};
    return header;
}

/* ---- what came ---- */

static void asks_everything(httpdown_request *request, fixture *f) {
    char local[64];
    CHECK(is(httpdown_request_method(request), "PUT"));
    CHECK(is(httpdown_request_target(request), "/a%20b?c=d&e"));
    CHECK(is(httpdown_request_path(request), "/a%20b"));
    CHECK(is(httpdown_request_query(request), "c=d&e"));
    CHECK(is(httpdown_request_scheme(request), "http"));
    EQUAL(httpdown_request_version(request), 11);
    UNTIL(f->server != NULL);
    CHECK(httpdown_request_server(request) == f->server);
    EQUAL(httpdown_local_addr(f->server, 0, local, sizeof local), 0);
    CHECK(is(httpdown_request_local_addr(request), local));
    httpdown_bytes peer = httpdown_request_peer_addr(request);
    CHECK(is_client_addr(peer.data, peer.len));
    told conn = wait_told(f, HTTPDOWN_EVENT_CONN, HTTPDOWN_CONN_NEW, NULL, 1);
    EQUAL(httpdown_request_conn_id(request), conn.conn);
    CHECK(is(peer, conn.text));
    httpdown_credentials client = {0, 0, 0};
    EQUAL(httpdown_request_peer_credentials(request, &client), by_unix() ? 0 : HTTPDOWN_STATUS_NOT_FOUND);
    if (by_unix()) CHECK(client.pid == (uint32_t)getpid() && client.uid == geteuid() && client.gid == getegid());
    EQUAL(httpdown_request_peer_credentials(request, NULL), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    CHECK(!httpdown_request_cancelled(request));
    /* Asked again, they are the same bytes. */
    CHECK(httpdown_request_peer_addr(request).data == peer.data);

    CHECK(is(httpdown_request_header(request, "X-Twice"), "first"));
    CHECK(is(httpdown_request_header(request, "x-tWICE"), "first"));
    httpdown_bytes none = httpdown_request_header(request, "absent"), empty = httpdown_request_header(request, "x-empty");
    CHECK(none.data == NULL && none.len == 0);
    CHECK(empty.data != NULL && empty.len == 0);
    CHECK(httpdown_request_header(request, "").data == NULL);
    CHECK(httpdown_request_header(request, "not a name").data == NULL);
    CHECK(httpdown_request_header(request, "x-empty\r\n").data == NULL);

    EQUAL(httpdown_request_header_count(request), 5);
    httpdown_header all[8], paged[5];
    size_t count = 99;
    EQUAL(httpdown_request_headers(request, 0, all, 8, &count), 0);
    EQUAL(count, 5);
    size_t twice = 5;
    for (size_t i = 0; i < 5; i++)
        if (twice == 5 && httpdown_bytes_equal(all[i].name, "x-twice")) twice = i;
    CHECK(twice < 4 && is(all[twice].value, "first") && is(all[twice + 1].name, "x-twice"));
    CHECK(is(all[twice + 1].value, "second"));
    for (size_t first = 0; first < 5; first += 2) {
        EQUAL(httpdown_request_headers(request, first, paged + first, first == 4 ? 1 : 2, &count), 0);
        EQUAL(count, first == 4 ? 1 : 2);
    }
    for (size_t i = 0; i < 5; i++) {
        CHECK(paged[i].name.data == all[i].name.data && paged[i].name.len == all[i].name.len);
        CHECK(paged[i].value.data == all[i].value.data && paged[i].value.len == all[i].value.len);
    }
    EQUAL(httpdown_request_headers(request, 5, all, 8, &count), 0);
    EQUAL(count, 0);
    EQUAL(httpdown_request_headers(request, (size_t)-1, all, 8, &count), 0);
    EQUAL(count, 0);
    count = 99;
    EQUAL(httpdown_request_headers(request, 0, NULL, 0, &count), 0);
    EQUAL(count, 0);
    httpdown_reply_text(request, 200, "all");
}

static void every_accessor_tells(void) {
    fixture *f = begin(asks_everything);
    int fd = dial(f->server);
    put(fd, "PUT /a%20b?c=d&e HTTP/1.1\r\nHost: test\r\nX-Twice: first\r\nX-Empty:\r\nx-other: 1\r\nx-TWICE: second\r\n\r\n");
    expect(fd, 200, "all");
    close(fd);
    end(f);
}

static void tells_the_target(httpdown_request *request, fixture *f) {
    (void)f;
    httpdown_bytes target = httpdown_request_target(request), path = httpdown_request_path(request),
                   query = httpdown_request_query(request), method = httpdown_request_method(request);
    char text[512];
    int len = snprintf(text, sizeof text, "%.*s %.*s %.*s %.*s %d", (int)method.len, method.data, (int)target.len,
                       target.data, (int)path.len, path.data, (int)query.len, query.data != NULL ? query.data : "",
                       httpdown_request_version(request));
    CHECK(query.data != NULL || query.len == 0);
    EQUAL(httpdown_reply(request, 200, NULL, 0, text, (size_t)len), 0);
}

static void check_target(httpdown_server *server, const char *line, const char *expected) {
    int fd = dial(server);
    put(fd, line);
    put(fd, "\r\nhost: test\r\nconnection: close\r\n\r\n");
    response r = take(fd);
    if (strcmp(r.body != NULL ? r.body : "", expected) != 0)
        fprintf(stderr, "%s: %d \"%s\", not \"%s\"\n", line, r.status, r.body != NULL ? r.body : "", expected);
    CHECK(r.status == 200 && strcmp(r.body, expected) == 0);
    done(&r);
    close(fd);
}

static void targets_come_as_they_were_sent(void) {
    fixture *f = begin(tells_the_target);
    check_target(f->server, "GET / HTTP/1.1", "GET / /  11");
    check_target(f->server, "GET /? HTTP/1.1", "GET /? /  11");
    check_target(f->server, "GET /%2F//../x?a?b HTTP/1.0", "GET /%2F//../x?a?b /%2F//../x a?b 10");
    check_target(f->server, "BREW /pot HTTP/1.1", "BREW /pot /pot  11");
    check_target(f->server, "OPTIONS * HTTP/1.1", "OPTIONS * *  11");
    check_target(f->server, "GET http://test/x?y HTTP/1.1", "GET http://test/x?y /x y 11");
    end(f);
}

/* ---- queries ---- */

static void queries_are_decoded(void) {
    httpdown_bytes query = httpdown_str("a=1+2%2B3&%61=again&&=empty&flag&pct=%2&nul=x%00y&bad=%FF&x=y=z");
    const struct {
        const char *name, *value;
        size_t len;
    } expected[] = {{"a", "1 2+3", 5}, {"", "empty", 5},    {"flag", "", 0},  {"pct", "%2", 2},
                    {"nul", "x\0y", 3}, {"bad", "\xff", 1}, {"x", "y=z", 3}};
    char text[16];
    size_t len;
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        len = 99;
        memset(text, '#', sizeof text);
        EQUAL(httpdown_query_value(query, expected[i].name, text, sizeof text, &len), 0);
        EQUAL(len, expected[i].len);
        CHECK(memcmp(text, expected[i].value, len + 1) == 0 && text[len + 1] == '#');
    }
    len = 99;
    EQUAL(httpdown_query_value(query, "b", text, sizeof text, &len), HTTPDOWN_STATUS_NOT_FOUND);
    EQUAL(httpdown_query_value((httpdown_bytes){0}, "", text, sizeof text, &len), HTTPDOWN_STATUS_NOT_FOUND);
    EQUAL(len, 99);

    /* Just enough room, one byte too few, none at all. */
    EQUAL(httpdown_query_value(query, "a", text, 6, &len), 0);
    EQUAL(httpdown_query_value(query, "a", text, 5, &len), HTTPDOWN_STATUS_TOO_LARGE);
    CHECK(len == 5 && text[0] == '\0');
    len = 99;
    EQUAL(httpdown_query_value(query, "a", NULL, 0, &len), HTTPDOWN_STATUS_TOO_LARGE);
    EQUAL(len, 5);
    EQUAL(httpdown_query_value(query, "flag", NULL, 0, &len), HTTPDOWN_STATUS_TOO_LARGE);
    EQUAL(len, 0);

    EQUAL(httpdown_query_decode(httpdown_str("a+b%20c"), text, sizeof text, &len), 0);
    CHECK(len == 5 && strcmp(text, "a b c") == 0);
    EQUAL(httpdown_percent_decode(httpdown_str("a+b%20c"), text, sizeof text, &len), 0);
    CHECK(len == 5 && strcmp(text, "a+b c") == 0);
    EQUAL(httpdown_percent_decode((httpdown_bytes){0}, text, sizeof text, &len), 0);
    EQUAL(len, 0);
}

static void pairs_of_a_query_come_in_their_order(void) {
    httpdown_bytes rest = httpdown_str("&a=b=c&&d&=e&");
    httpdown_header pair = {{"kept", 4}, {"kept", 4}};
    CHECK(httpdown_query_next(&rest, &pair) && is(pair.name, "a") && is(pair.value, "b=c"));
    CHECK(httpdown_query_next(&rest, &pair) && is(pair.name, "d") && is(pair.value, ""));
    CHECK(httpdown_query_next(&rest, &pair) && is(pair.name, "") && is(pair.value, "e"));
    CHECK(!httpdown_query_next(&rest, &pair) && !httpdown_query_next(&rest, &pair) && is(pair.value, "e"));
}

static void tells_the_duration(httpdown_request *request, fixture *f) {
    (void)f;
    char text[16] = "none";
    size_t len;
    int status = httpdown_query_value(httpdown_request_query(request), "duration", text, sizeof text, &len);
    CHECK(status == 0 || status == HTTPDOWN_STATUS_NOT_FOUND);
    httpdown_reply_text(request, 200, text);
}

static void a_request_has_its_query(void) {
    fixture *f = begin(tells_the_duration);
    check_target(f->server, "GET /?a=b&duration=5%6ds&id=7 HTTP/1.1", "5ms");
    check_target(f->server, "GET /duration=1? HTTP/1.1", "none");
    check_target(f->server, "GET / HTTP/1.1", "none");
    end(f);
}

/* ---- bodies ---- */

static void whole_body(httpdown_request *request, fixture *f) {
    (void)f;
    httpdown_bytes body = {"unset", 5}, again;
    EQUAL(httpdown_request_body(request, 1 << 20, HTTPDOWN_FOREVER, &body), 0);
    EQUAL(httpdown_request_body(request, 1 << 20, HTTPDOWN_FOREVER, &again), 0);
    CHECK(again.data == body.data && again.len == body.len);
    char byte;
    size_t count = 99;
    EQUAL(httpdown_request_read(request, &byte, 1, HTTPDOWN_FOREVER, &count), 0);
    EQUAL(count, 0);
    EQUAL(httpdown_reply(request, 200, NULL, 0, body.data, body.len), 0);
}

static void in_small_pieces(httpdown_request *request, fixture *f) {
    (void)f;
    char buffer[7], all[4096];
    size_t count, len = 0;
    do {
        EQUAL(httpdown_request_read(request, buffer, sizeof buffer, HTTPDOWN_FOREVER, &count), 0);
        CHECK(count <= sizeof buffer && len + count < sizeof all);
        memcpy(all + len, buffer, count);
        len += count;
    } while (count > 0);
    EQUAL(httpdown_request_read(request, buffer, sizeof buffer, HTTPDOWN_FOREVER, &count), 0);
    EQUAL(count, 0); /* and stays at the end */
    EQUAL(httpdown_request_read(request, buffer, 0, HTTPDOWN_FOREVER, &count), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    EQUAL(httpdown_reply(request, 200, NULL, 0, all, len), 0);
}

static void check_bodies(body_fn body) {
    fixture *f = begin(body);
    int fd = dial(f->server);
    put(fd, "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 26\r\n\r\nabcdefghijklmnopqrstuvwxyz");
    expect(fd, 200, "abcdefghijklmnopqrstuvwxyz");
    put(fd, "POST / HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n");
    put(fd, "A;x=y\r\ndefghijklm\r\n0\r\nx-trailer: 1\r\n\r\n");
    expect(fd, 200, "abcdefghijklm");
    put(fd, "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\n\r\n");
    expect(fd, 200, "");
    put(fd, GET("/"));
    expect(fd, 200, "");
    put(fd, "POST / HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n");
    response r = take_head(fd);
    EQUAL(r.status, 100);
    put(fd, "yes");
    expect(fd, 200, "yes");
    close(fd);
    EQUAL(end(f).served, 5);
}

static void bodies_come_whole(void) {
    check_bodies(whole_body);
}

static void bodies_come_in_pieces(void) {
    check_bodies(in_small_pieces);
}

static void limited_body(httpdown_request *request, fixture *f) {
    (void)f;
    httpdown_bytes body = {"unset", 5};
    EQUAL(httpdown_request_body(request, 9, HTTPDOWN_FOREVER, &body), HTTPDOWN_STATUS_TOO_LARGE);
    EQUAL(httpdown_request_body(request, 0, HTTPDOWN_FOREVER, &body), HTTPDOWN_STATUS_TOO_LARGE);
    CHECK(is(body, "unset"));
    if (httpdown_bytes_equal(httpdown_request_path(request), "/pieces")) {
        char all[32];
        size_t count, len = 0;
        do {
            EQUAL(httpdown_request_read(request, all + len, 3, HTTPDOWN_FOREVER, &count), 0);
            len += count;
        } while (count > 0);
        EQUAL(httpdown_reply(request, 200, NULL, 0, all, len), 0);
        return;
    }
    EQUAL(httpdown_request_body(request, 10, HTTPDOWN_FOREVER, &body), 0);
    EQUAL(httpdown_reply(request, 200, NULL, 0, body.data, body.len), 0);
}

/* A limit that was too low costs nothing: asked again with a higher one, or in pieces, the whole body is there. */
static void a_body_over_the_limit_is_not_lost(void) {
    fixture *f = begin(limited_body);
    int fd = dial(f->server);
    for (int i = 0; i < 2; i++) {
        const char *line = i == 0 ? "POST / HTTP/1.1\r\nhost: test\r\n" : "POST /pieces HTTP/1.1\r\nhost: test\r\n";
        put(fd, line);
        put(fd, "content-length: 10\r\n\r\n0123456789");
        expect(fd, 200, "0123456789");
        put(fd, line);
        put(fd, "transfer-encoding: chunked\r\n\r\n5\r\n01234\r\n5\r\n56789\r\n0\r\n\r\n");
        expect(fd, 200, "0123456789");
    }
    close(fd);
    EQUAL(end(f).served, 4);
}

static void read_then_body(httpdown_request *request, fixture *f) {
    (void)f;
    char start[4];
    size_t count;
    EQUAL(httpdown_request_read(request, start, sizeof start, HTTPDOWN_FOREVER, &count), 0);
    httpdown_bytes body;
    EQUAL(httpdown_request_body(request, 100, HTTPDOWN_FOREVER, &body), 0);
    EQUAL(httpdown_reply(request, 200, NULL, 0, body.data, body.len), 0);
}

static void what_was_read_is_missing_from_the_body(void) {
    fixture *f = begin(read_then_body);
    int fd = dial(f->server);
    put(fd, "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\n0123456789");
    expect(fd, 200, "456789");
    close(fd);
    end(f);
}

static void *answer_with_body(void *argument) {
    httpdown_request *request = argument;
    httpdown_bytes body;
    EQUAL(httpdown_request_body(request, 1000, HTTPDOWN_FOREVER, &body), 0);
    EQUAL(httpdown_reply(request, 200, NULL, 0, body.data, body.len), 0);
    return NULL;
}

/* In place nothing is there yet: WOULD_BLOCK. Then another thread reads it: nothing of it may be lost. */
static void body_later(httpdown_request *request, fixture *f) {
    httpdown_bytes body;
    EQUAL(httpdown_request_body(request, 1000, HTTPDOWN_FOREVER, &body), HTTPDOWN_STATUS_WOULD_BLOCK);
    EQUAL(httpdown_request_body(request, 1000, HTTPDOWN_FOREVER, &body), HTTPDOWN_STATUS_WOULD_BLOCK);
    EQUAL(httpdown_request_defer(request), 0);
    gate_add(&f->entered);
    pthread_detach(spawn(answer_with_body, request));
}

static void a_body_that_would_block_is_not_lost(void) {
    fixture *f = begin_as(body_later, HTTPDOWN_DISPATCH_INLINE);
    int fd = dial(f->server);
    put(fd, "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\n01234");
    gate_wait(&f->entered, 1);
    put(fd, "56789");
    expect(fd, 200, "0123456789");
    close(fd);
    end(f);
}

static httpdown_request *first_request;

/* One request is kept; the next one's handler, on the same thread, tries to read it: only a part is there. */
static void body_from_elsewhere(httpdown_request *request, fixture *f) {
    httpdown_bytes body;
    if (httpdown_request_header(request, "content-length").data != NULL) {
        EQUAL(httpdown_request_defer(request), 0);
        first_request = request;
        gate_add(&f->entered);
        return;
    }
    EQUAL(httpdown_request_body(first_request, 1000, HTTPDOWN_FOREVER, &body), HTTPDOWN_STATUS_WOULD_BLOCK);
    httpdown_reply_text(request, 200, "tried");
}

static void a_part_that_would_block_is_not_lost(void) {
    fixture *f = new_fixture();
    case_ c = {body_from_elsewhere};
    f->extra = &c;
    httpdown_options options = options_for(f, on_request);
    options.dispatch = HTTPDOWN_DISPATCH_INLINE;
    options.io_threads = 1;
    start(&options);
    int fd = dial(f->server);
    put(fd, "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\n01234");
    gate_wait(&f->entered, 1);
    for (int i = 0; i < 3; i++) get(f->server, 200, "tried");
    put(fd, "56789");
    pthread_t thread = spawn(answer_with_body, first_request);
    expect(fd, 200, "0123456789");
    join(thread);
    close(fd);
    end_server(f, 0);
    free_fixture(f);
}

static void malformed_body(httpdown_request *request, fixture *f) {
    httpdown_bytes body;
    bool is_bad = httpdown_request_header(request, "transfer-encoding").data != NULL;
    int expected = is_bad ? HTTPDOWN_STATUS_BAD_BODY : HTTPDOWN_STATUS_GONE;
    EQUAL(httpdown_request_body(request, 1000, HTTPDOWN_FOREVER, &body), expected);
    /* And it stays so: an end that comes after the error would make the body look whole. */
    char buffer[8];
    size_t count = 99;
    EQUAL(httpdown_request_read(request, buffer, sizeof buffer, HTTPDOWN_FOREVER, &count), expected);
    EQUAL(httpdown_request_body(request, 1000, HTTPDOWN_FOREVER, &body), expected);
    gate_add(&f->entered);
    /* Not answered: a client that is not gone gets a 400. */
    if (httpdown_bytes_equal(httpdown_request_path(request), "/answered")) httpdown_reply_text(request, 422, "what?");
}

static void a_malformed_body_is_bad_and_one_that_is_cut_is_gone(void) {
    fixture *f = begin(malformed_body);
    int fd = dial(f->server);
    put(fd, "POST / HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n");
    expect(fd, 400, NULL);
    close(fd);
    fd = dial(f->server);
    put(fd, "POST /answered HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n");
    expect(fd, 422, "what?");
    close(fd);
    fd = dial(f->server);
    put(fd, "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 100\r\n\r\nabc");
    shutdown(fd, SHUT_WR);
    gate_wait(&f->entered, 3);
    close(fd);
    httpdown_stop_report report = end(f);
    EQUAL(report.served, 2);
    EQUAL(report.gone, 1);
}

static void unread(httpdown_request *request, fixture *f) {
    (void)f;
    httpdown_reply_text(request, 200, "not read");
}

static void a_body_may_be_left_unread(void) {
    fixture *f = begin(unread);
    int fd = dial(f->server);
    put(fd, "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 5\r\n\r\n01234");
    expect(fd, 200, "not read");
    put(fd, GET_CLOSE("/"));
    expect(fd, 200, "not read");
    close(fd);
    end(f);
}

/* ---- whole answers ---- */

static void replies_with_headers(httpdown_request *request, fixture *f) {
    (void)f;
    httpdown_header headers[] = {field("X-One", "1"), field("set-cookie", "a=b"), field("set-cookie", "c=d"),
                                 field("x-empty", ""), field("content-type", "text/x-test")};
    EQUAL(httpdown_reply(request, 299, headers, 5, "body", 4), 0); /* which has no reason phrase */
    EQUAL(httpdown_reply_text(request, 200, "twice"), HTTPDOWN_STATUS_ALREADY_REPLIED);
    EQUAL(httpdown_reply(request, 200, NULL, 0, NULL, 0), HTTPDOWN_STATUS_ALREADY_REPLIED);
    EQUAL(httpdown_reply_start(request, 200, NULL, 0), HTTPDOWN_STATUS_ALREADY_REPLIED);
    EQUAL(httpdown_reply_write(request, "x", 1, HTTPDOWN_FOREVER, NULL), HTTPDOWN_STATUS_ALREADY_REPLIED);
    EQUAL(httpdown_reply_finish(request), HTTPDOWN_STATUS_ALREADY_REPLIED);
    EQUAL(httpdown_reply_abort(request), HTTPDOWN_STATUS_ALREADY_REPLIED);
    EQUAL(httpdown_request_defer(request), HTTPDOWN_STATUS_ALREADY_REPLIED);
    char buffer[4];
    size_t count;
    httpdown_bytes body;
    httpdown_header header;
    EQUAL(httpdown_request_read(request, buffer, 4, HTTPDOWN_FOREVER, &count), HTTPDOWN_STATUS_ALREADY_REPLIED);
    EQUAL(httpdown_request_body(request, 4, HTTPDOWN_FOREVER, &body), HTTPDOWN_STATUS_ALREADY_REPLIED);
    EQUAL(httpdown_request_headers(request, 0, &header, 1, &count), 0);
    /* Its head can be read until this returns. */
    CHECK(is(httpdown_request_method(request), "GET"));
    CHECK(is(httpdown_request_header(request, "host"), "test"));
    EQUAL(httpdown_request_header_count(request), 1);
    EQUAL(httpdown_request_version(request), 11);
}

static void a_reply_has_what_it_was_given(void) {
    fixture *f = begin(replies_with_headers);
    int fd = dial(f->server);
    put(fd, GET("/"));
    response r = take(fd);
    EQUAL(r.status, 299);
    CHECK(r.whole && strcmp(r.body, "body") == 0);
    CHECK(strcmp(header_of(&r, "x-one"), "1") == 0);
    CHECK(strcmp(header_of(&r, "content-length"), "4") == 0);
    CHECK(strcmp(header_of(&r, "content-type"), "text/x-test") == 0);
    CHECK(header_of(&r, "date") != NULL);
    CHECK(strcmp(header_of(&r, "x-empty"), "") == 0);
    CHECK(strstr(r.head, "set-cookie: a=b\r\n") && strstr(r.head, "set-cookie: c=d\r\n"));
    done(&r);
    close(fd);
    EQUAL(end(f).served, 1);
}

/* The request's own headers, and one of their values as the body: borrowed until the request is ended, and so until all
 * of the answer has been copied. valgrind sees it if not. */
static void echoes_headers(httpdown_request *request, fixture *f) {
    (void)f;
    httpdown_header all[8];
    size_t count;
    EQUAL(httpdown_request_headers(request, 0, all, 8, &count), 0);
    httpdown_bytes body = httpdown_request_header(request, "x-its-own-name");
    EQUAL(httpdown_reply(request, 200, all, count, body.data, body.len), 0);
}

static void a_reply_may_be_made_of_the_request(void) {
    fixture *f = begin(echoes_headers);
    int fd = dial(f->server);
    put(fd, "GET / HTTP/1.1\r\nhost: test\r\nx-its-own-name: a value of its own\r\n\r\n");
    response r = take(fd);
    EQUAL(r.status, 200);
    CHECK(strcmp(r.body, "a value of its own") == 0);
    CHECK(strcmp(header_of(&r, "x-its-own-name"), "a value of its own") == 0);
    CHECK(strcmp(header_of(&r, "host"), "test") == 0);
    done(&r);
    close(fd);
    EQUAL(end(f).served, 1);
}

static void text_reply(httpdown_request *request, fixture *f) {
    (void)f;
    EQUAL(httpdown_reply_text(request, 404, "gr\xc3\xbc\xc3\x9f"), 0);
}

static void a_text_is_utf8(void) {
    fixture *f = begin(text_reply);
    int fd = dial(f->server);
    put(fd, GET("/"));
    response r = take(fd);
    EQUAL(r.status, 404);
    CHECK(strcmp(r.body, "gr\xc3\xbc\xc3\x9f") == 0);
    CHECK(strcmp(header_of(&r, "content-type"), "text/plain; charset=utf-8") == 0);
    done(&r);
    put(fd, "HEAD / HTTP/1.1\r\nhost: test\r\n\r\n");
    r = take_head(fd);
    EQUAL(r.status, 404);
    CHECK(strcmp(header_of(&r, "content-length"), "6") == 0);
    put(fd, GET_CLOSE("/")); /* no body lies between */
    expect(fd, 404, NULL);
    CHECK(is_at_end(fd));
    close(fd);
    EQUAL(end(f).served, 3);
}

static void bodyless_reply(httpdown_request *request, fixture *f) {
    (void)f;
    httpdown_bytes path = httpdown_request_path(request);
    EQUAL(httpdown_reply_text(request, atoi(path.data + 1), "there is no room for this"), 0);
}

static void statuses_without_a_body_have_none(void) {
    fixture *f = begin(bodyless_reply);
    int fd = dial(f->server);
    put(fd, GET("/204"));
    response r = take(fd);
    EQUAL(r.status, 204);
    CHECK(header_of(&r, "content-length") == NULL && header_of(&r, "transfer-encoding") == NULL);
    done(&r);
    put(fd, GET("/304"));
    expect(fd, 304, NULL);
    put(fd, GET("/999"));
    expect(fd, 999, "there is no room for this");
    close(fd);
    EQUAL(end(f).served, 3);
}

/* ---- borrowed bodies ---- */

enum { BIG = 16 << 20 }; /* more than the kernel takes from one side while the other reads nothing */
static char *big;

static void release_big(void *user_data) {
    gate_add(&((fixture *)user_data)->release);
    free(big);
    big = NULL;
}

static void count_release(void *user_data) {
    gate_add(&((fixture *)user_data)->release);
}

static void make_big(void) {
    big = malloc(BIG);
    CHECK(big != NULL);
    memset(big, 'b', BIG);
}

static void lends_big(httpdown_request *request, fixture *f) {
    make_big();
    EQUAL(httpdown_reply_borrowed(request, 200, NULL, 0, big, BIG, release_big, f), 0);
    gate_add(&f->entered);
}

static void a_borrowed_body_is_released_when_sent(void) {
    fixture *f = begin(lends_big);
    int fd = dial(f->server);
    put(fd, GET("/"));
    gate_wait(&f->entered, 1);
    EQUAL(gate_value(&f->release), 0); /* the client has taken nothing, so it cannot all be sent */
    response r = take(fd);
    CHECK(r.whole);
    EQUAL(r.len, BIG);
    for (size_t i = 0; i < BIG; i++) CHECK(r.body[i] == 'b');
    done(&r);
    gate_wait(&f->release, 1);
    close(fd);
    EQUAL(end(f).served, 1);
}

static void a_borrowed_body_is_released_when_the_client_leaves(void) {
    fixture *f = begin(lends_big);
    int fd = dial(f->server);
    put(fd, GET("/"));
    gate_wait(&f->entered, 1);
    reset(fd);
    gate_wait(&f->release, 1);
    EQUAL(end(f).gone, 1);
}

static void a_borrowed_body_is_released_by_a_kill(void) {
    fixture *f = begin(lends_big);
    int fd = dial(f->server);
    put(fd, GET("/"));
    gate_wait(&f->entered, 1);
    EQUAL(httpdown_kill_begin(f->server), 0);
    EQUAL(httpdown_stop(f->server), HTTPDOWN_STATUS_KILLED);
    gate_wait(&f->release, 1);
    close(fd);
    EQUAL(end_as(f, HTTPDOWN_STATUS_KILLED).killed, 1);
}

static void lends_in_vain(httpdown_request *request, fixture *f) {
    httpdown_header bad = field("x", "a\nb");
    EQUAL(httpdown_reply_borrowed(NULL, 200, NULL, 0, "x", 1, count_release, f), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    EQUAL(gate_value(&f->release), 1);
    httpdown_bytes path = httpdown_request_path(request);
    if (httpdown_bytes_equal(path, "/head")) EQUAL(httpdown_reply_borrowed(request, 200, NULL, 0, "lent", 4, count_release, f), 0);
    else if (httpdown_bytes_equal(path, "/header"))
        EQUAL(httpdown_reply_borrowed(request, 200, &bad, 1, "x", 1, count_release, f), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    else if (httpdown_bytes_equal(path, "/status"))
        EQUAL(httpdown_reply_borrowed(request, 99, NULL, 0, "x", 1, count_release, f), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    else if (httpdown_bytes_equal(path, "/body"))
        EQUAL(httpdown_reply_borrowed(request, 200, NULL, 0, NULL, 1, count_release, f), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    else EQUAL(httpdown_reply_borrowed(request, 200, NULL, 0, NULL, 0, count_release, f), 0);
    gate_wait(&f->release, 2);
    EQUAL(httpdown_reply_borrowed(request, 200, NULL, 0, "x", 1, count_release, f), HTTPDOWN_STATUS_ALREADY_REPLIED);
    EQUAL(gate_value(&f->release), 3);
    EQUAL(httpdown_reply_borrowed(request, 200, NULL, 0, "x", 1, NULL, f), HTTPDOWN_STATUS_ALREADY_REPLIED);
}

static void a_borrowed_body_is_released_whatever_happens(void) {
    static const struct {
        const char *request;
        int status;
    } cases[] = {{"HEAD /head", 200}, {"GET /header", 500}, {"GET /status", 500}, {"GET /body", 500}, {"GET /empty", 200}};
    for (size_t i = 0; i < 5; i++) {
        fixture *f = begin(lends_in_vain);
        int fd = dial(f->server);
        put(fd, cases[i].request);
        put(fd, " HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
        response r = take_head(fd);
        EQUAL(r.status, cases[i].status);
        close(fd);
        gate_wait(&f->left, 1);
        EQUAL(gate_value(&f->release), 3);
        end(f);
    }
}

/* ---- answers in pieces ---- */

static void pieces(httpdown_request *request, fixture *f) {
    (void)f;
    httpdown_header header = field("x-piece", "yes");
    EQUAL(httpdown_reply_write(request, "early", 5, HTTPDOWN_FOREVER, NULL), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    EQUAL(httpdown_reply_start(request, 100, NULL, 0), HTTPDOWN_STATUS_INVALID_ARGUMENT); /* as it was before */
    EQUAL(httpdown_reply_start(request, 200, &header, 1), 0);
    EQUAL(httpdown_reply_start(request, 200, NULL, 0), HTTPDOWN_STATUS_ALREADY_REPLIED);
    EQUAL(httpdown_reply_write(request, NULL, 0, HTTPDOWN_FOREVER, NULL), 0);
    EQUAL(httpdown_reply_write(request, "", 0, HTTPDOWN_FOREVER, NULL), 0);
    EQUAL(httpdown_reply_write(request, NULL, 1, HTTPDOWN_FOREVER, NULL), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    int is_head = httpdown_request_method(request).len == 4;
    CHECK(is(httpdown_request_method(request), is_head ? "HEAD" : "GET"));
    EQUAL(httpdown_reply_write(request, "one ", 4, HTTPDOWN_FOREVER, NULL), is_head ? HTTPDOWN_STATUS_ALREADY_REPLIED : 0);
    if (is_head) EQUAL(httpdown_request_wait_cancelled(request, PATIENCE_MS), HTTPDOWN_STATUS_ALREADY_REPLIED);
    CHECK(httpdown_request_cancelled(request) == is_head);
    EQUAL(httpdown_reply_write(request, "two", 3, HTTPDOWN_FOREVER, NULL), is_head ? HTTPDOWN_STATUS_ALREADY_REPLIED : 0);
    EQUAL(httpdown_reply_finish(request), 0);
}

static void pieces_go_out_chunked(void) {
    fixture *f = begin(pieces);
    int fd = dial(f->server);
    put(fd, GET("/"));
    response r = take(fd);
    EQUAL(r.status, 200);
    CHECK(r.whole && strcmp(r.body, "one two") == 0);
    CHECK(strcmp(header_of(&r, "transfer-encoding"), "chunked") == 0);
    CHECK(strcmp(header_of(&r, "x-piece"), "yes") == 0);
    done(&r);
    put(fd, "HEAD / HTTP/1.1\r\nhost: test\r\n\r\n");
    r = take_head(fd);
    EQUAL(r.status, 200);
    put(fd, GET("/"));
    expect(fd, 200, "one two");
    close(fd);
    fd = dial(f->server); /* HTTP/1.0 has no chunks: the end is the end of the connection */
    put(fd, "GET / HTTP/1.0\r\n\r\n");
    r = take(fd);
    CHECK(r.whole && strcmp(r.body, "one two") == 0 && header_of(&r, "transfer-encoding") == NULL);
    done(&r);
    close(fd);
    EQUAL(end(f).served, 4);
}

static void flushes(httpdown_request *request, fixture *f) {
    EQUAL(httpdown_reply_start(request, 200, NULL, 0), 0);
    gate_wait(&f->release, 1); /* the client has seen the head */
    EQUAL(httpdown_reply_write(request, "a", 1, HTTPDOWN_FOREVER, NULL), 0);
    gate_wait(&f->release, 2); /* and the first byte */
    EQUAL(httpdown_reply_write(request, "b", 1, HTTPDOWN_FOREVER, NULL), 0);
    EQUAL(httpdown_reply_finish(request), 0);
}

static void pieces_are_sent_at_once(void) {
    fixture *f = begin(flushes);
    int fd = dial(f->server);
    char line[32];
    put(fd, GET("/"));
    response r = take_head(fd);
    EQUAL(r.status, 200);
    gate_add(&f->release);
    CHECK(take_line(fd, line, sizeof line, &r) && strcmp(line, "1\r\n") == 0);
    CHECK(take_line(fd, line, sizeof line, &r) && strcmp(line, "a\r\n") == 0);
    gate_add(&f->release);
    take_body(fd, &r);
    CHECK(r.whole && strcmp(r.body, "b") == 0);
    done(&r);
    close(fd);
    end(f);
}

static void declares_length(httpdown_request *request, fixture *f) {
    httpdown_bytes path = httpdown_request_path(request);
    httpdown_header header = field("content-length", "10");
    EQUAL(httpdown_reply_start(request, 200, &header, 1), 0);
    EQUAL(httpdown_reply_write(request, "01234", 5, HTTPDOWN_FOREVER, NULL), 0);
    if (httpdown_bytes_equal(path, "/right")) {
        EQUAL(httpdown_reply_write(request, "56789", 5, HTTPDOWN_FOREVER, NULL), 0);
        EQUAL(httpdown_reply_finish(request), 0);
    } else if (httpdown_bytes_equal(path, "/abort")) EQUAL(httpdown_reply_abort(request), 0);
    else if (httpdown_bytes_equal(path, "/long")) {
        int status = httpdown_reply_write(request, "56789abcde", 10, HTTPDOWN_FOREVER, NULL);
        if (status == 0) fprintf(stderr, "a write beyond the Content-Length said OK\n");
        CHECK(status == HTTPDOWN_STATUS_INVALID_ARGUMENT);
        httpdown_reply_finish(request);
    } else {
        int status = httpdown_reply_finish(request);
        if (status == 0) fprintf(stderr, "a finish before the Content-Length said OK\n");
        CHECK(status != 0);
    }
    gate_add(&f->entered);
}

static void a_declared_length_goes_out_as_it_is(void) {
    fixture *f = begin(declares_length);
    int fd = dial(f->server);
    put(fd, GET("/right"));
    response r = take(fd);
    CHECK(r.whole && strcmp(r.body, "0123456789") == 0 && header_of(&r, "transfer-encoding") == NULL);
    CHECK(strcmp(header_of(&r, "content-length"), "10") == 0);
    done(&r);
    close(fd);
    EQUAL(end(f).served, 1);
}

static void an_aborted_answer_is_cut(void) {
    fixture *f = begin(declares_length);
    int fd = dial(f->server);
    put(fd, GET("/abort"));
    response r = take(fd);
    CHECK(!r.whole);
    done(&r);
    close(fd);
    httpdown_stop_report report = end(f);
    EQUAL(report.failed, 1);
    EQUAL(report.served, 0);
}

/* The client sees the cut ... */
static void a_length_that_is_too_short_is_cut(void) {
    fixture *f = begin(declares_length);
    int fd = dial(f->server);
    put(fd, GET("/short"));
    response r = take(fd);
    CHECK(!r.whole);
    done(&r);
    close(fd);
    gate_wait(&f->entered, 1); /* ... and the handler is told */
    EQUAL(end(f).failed, 1);
}

static void a_length_that_is_too_long_is_refused(void) {
    fixture *f = begin(declares_length);
    int fd = dial(f->server);
    put(fd, GET("/long"));
    response r = take(fd);
    CHECK(r.len <= 10);
    done(&r);
    close(fd);
    gate_wait(&f->entered, 1);
    end(f);
}

static void wrong_lengths(httpdown_request *request, fixture *f) {
    static const char *const wrong[] = {"5", "3", "-4", "+4", "4, 4", " 4", "0x4", "", "99999999999999999999"};
    httpdown_bytes path = httpdown_request_path(request);
    const char *value = wrong[atoi(path.data + 1)];
    httpdown_header header = field("Content-Length", value);
    int status = httpdown_reply(request, 200, &header, 1, "four", 4);
    if (status == 0) fprintf(stderr, "content-length \"%s\" was accepted\n", value);
    EQUAL(status, HTTPDOWN_STATUS_INVALID_ARGUMENT);
    gate_add(&f->entered);
}

static void wrong_lengths_are_refused(void) {
    fixture *f = begin(wrong_lengths);
    for (int i = 0; i < 9; i++) {
        char line[64];
        int fd = dial(f->server);
        snprintf(line, sizeof line, "GET /%d HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n", i);
        put(fd, line);
        expect(fd, 500, NULL);
        close(fd);
    }
    end(f);
}

static void right_length(httpdown_request *request, fixture *f) {
    (void)f;
    httpdown_header header = field("Content-Length", "4");
    EQUAL(httpdown_reply(request, 200, &header, 1, "four", 4), 0);
}

static void the_right_length_is_sent_once(void) {
    fixture *f = begin(right_length);
    int fd = dial(f->server);
    put(fd, GET("/"));
    response r = take(fd);
    CHECK(r.whole && strcmp(r.body, "four") == 0);
    const char *first = strstr(r.head, "content-length:");
    CHECK(first != NULL && strstr(first + 1, "content-length:") == NULL);
    done(&r);
    close(fd);
    end(f);
}

static void replies_after_start(httpdown_request *request, fixture *f) {
    EQUAL(httpdown_reply_start(request, 200, NULL, 0), 0);
    EQUAL(httpdown_reply_text(request, 200, "whole"), HTTPDOWN_STATUS_ALREADY_REPLIED); /* and ends it */
    gate_add(&f->entered);
}

static void a_whole_reply_after_a_start_cuts(void) {
    fixture *f = begin(replies_after_start);
    int fd = dial(f->server);
    put(fd, GET("/"));
    response r = take(fd);
    CHECK(!r.whole);
    done(&r);
    close(fd);
    EQUAL(end(f).failed, 1);
}

static void finishes_without_start(httpdown_request *request, fixture *f) {
    (void)f;
    EQUAL(httpdown_reply_finish(request), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    EQUAL(httpdown_reply_text(request, 200, "too late"), HTTPDOWN_STATUS_ALREADY_REPLIED);
}

static void a_finish_without_a_start_is_500(void) {
    fixture *f = begin(finishes_without_start);
    get(f->server, 500, NULL);
    EQUAL(end(f).served, 1);
}

/* A client that reads slowly slows the writer: the memory stays bounded. */
static void writes_much(httpdown_request *request, fixture *f) {
    static char block[1 << 20];
    EQUAL(httpdown_reply_start(request, 200, NULL, 0), 0);
    for (int i = 0; i < 32; i++) {
        EQUAL(httpdown_reply_write(request, block, sizeof block, HTTPDOWN_FOREVER, NULL), 0);
        gate_add(&f->entered);
    }
    EQUAL(httpdown_reply_finish(request), 0);
}

static void a_slow_client_slows_the_writer(void) {
    fixture *f = begin(writes_much);
    int fd = dial(f->server);
    put(fd, GET("/"));
    if (!by_unix()) gate_wait(&f->entered, 1); /* a Unix socket takes less than a piece */
    for (int before = -1; before != gate_value(&f->entered);) { /* until it stands still */
        before = gate_value(&f->entered);
        nanosleep(&(struct timespec){.tv_nsec = 200000000}, NULL);
    }
    CHECK(gate_value(&f->entered) < 32);
    response r = take(fd);
    CHECK(r.whole);
    EQUAL(r.len, 32 << 20);
    done(&r);
    close(fd);
    end(f);
}

static void writes_in_place(httpdown_request *request, fixture *f) {
    static char block[65536];
    EQUAL(httpdown_reply_start(request, 200, NULL, 0), 0);
    int taken = 0, status;
    while ((status = httpdown_reply_write(request, block, sizeof block, HTTPDOWN_FOREVER, NULL)) == 0) CHECK(++taken < 1000);
    EQUAL(status, HTTPDOWN_STATUS_WOULD_BLOCK);
    CHECK(taken >= 4);
    f->extra_count = taken;
    EQUAL(httpdown_reply_write(request, block, 1, HTTPDOWN_FOREVER, NULL), HTTPDOWN_STATUS_WOULD_BLOCK); /* nothing of it was taken */
    EQUAL(httpdown_reply_finish(request), 0);
}

static void writing_in_place_never_blocks(void) {
    fixture *f = begin_as(writes_in_place, HTTPDOWN_DISPATCH_INLINE);
    int fd = dial(f->server);
    put(fd, GET("/"));
    response r = take(fd);
    CHECK(r.whole);
    EQUAL(r.len, f->extra_count * 65536);
    done(&r);
    close(fd);
    EQUAL(end(f).served, 1);
}

/* ---- no answer ---- */

static void does_nothing(httpdown_request *request, fixture *f) {
    (void)request, (void)f;
}

static void no_answer_is_500(void) {
    fixture *f = begin(does_nothing);
    get(f->server, 500, NULL);
    wait_told(f, HTTPDOWN_EVENT_LOG, HTTPDOWN_LOG_ERROR, "did not answer", 1);
    wait_stat(f, HTTPDOWN_STAT_SUM, "handler.error", 1);
    EQUAL(end(f).served, 1);
}

static void aborts(httpdown_request *request, fixture *f) {
    (void)f;
    EQUAL(httpdown_reply_abort(request), 0);
}

static void an_abort_is_500(void) {
    fixture *f = begin(aborts);
    get(f->server, 500, NULL);
    EQUAL(end(f).served, 1);
}

/* ---- later, elsewhere ---- */

static void *reply_elsewhere(void *argument) {
    httpdown_request *request = argument;
    CHECK(is(httpdown_request_method(request), "GET"));
    EQUAL(httpdown_reply_text(request, 200, "later"), 0);
    return NULL;
}

static void defers(httpdown_request *request, fixture *f) {
    (void)f;
    EQUAL(httpdown_request_defer(request), 0);
    EQUAL(httpdown_request_defer(request), 0); /* it stays owned, once */
    pthread_detach(spawn(reply_elsewhere, request));
}

static void deferred_requests_are_answered_elsewhere(void) {
    for (int dispatch = 0; dispatch < 2; dispatch++) {
        fixture *f = begin_as(defers, dispatch);
        int fd = dial(f->server);
        for (int i = 0; i < 20; i++) {
            put(fd, GET("/"));
            expect(fd, 200, "later");
        }
        close(fd);
        EQUAL(end(f).served, 20);
    }
}

static void defers_and_replies(httpdown_request *request, fixture *f) {
    (void)f;
    EQUAL(httpdown_request_defer(request), 0);
    EQUAL(httpdown_reply_text(request, 200, "now after all"), 0);
}

static void a_deferred_request_can_be_answered_in_the_handler(void) {
    fixture *f = begin(defers_and_replies);
    get(f->server, 200, "now after all");
    EQUAL(end(f).served, 1);
}

static void *streams_elsewhere(void *argument) {
    httpdown_request *request = argument;
    EQUAL(httpdown_reply_start(request, 200, NULL, 0), 0);
    EQUAL(httpdown_reply_write(request, "piece", 5, HTTPDOWN_FOREVER, NULL), 0);
    EQUAL(httpdown_reply_finish(request), 0);
    return NULL;
}

static void defers_a_stream(httpdown_request *request, fixture *f) {
    (void)f;
    EQUAL(httpdown_request_defer(request), 0);
    pthread_detach(spawn(streams_elsewhere, request));
}

static void a_deferred_request_can_be_streamed(void) {
    fixture *f = begin(defers_a_stream);
    get(f->server, 200, "piece");
    EQUAL(end(f).served, 1);
}

/* ---- behind the answer ---- */

/* All that there is of the head: where the request does not live any more, that is nothing. */
static void check_head(httpdown_request *request, bool lives) {
    size_t count;
    httpdown_header fields[4];
    const char *none = lives ? NULL : "";
    CHECK(is(httpdown_request_method(request), none ? none : "PURGE"));
    CHECK(is(httpdown_request_target(request), none ? none : "/a/path?and=query"));
    CHECK(is(httpdown_request_path(request), none ? none : "/a/path"));
    CHECK(is(httpdown_request_query(request), none ? none : "and=query"));
    CHECK(is(httpdown_request_header(request, "x-long"), none ? none : "a value that has memory of its own"));
    CHECK(is(httpdown_request_scheme(request), none ? none : "http"));
    EQUAL(httpdown_request_version(request), lives ? 11 : 0);
    EQUAL(httpdown_request_header_count(request), lives ? 3 : 0);
    EQUAL(httpdown_request_headers(request, 0, fields, 4, &count), lives ? 0 : HTTPDOWN_STATUS_ALREADY_REPLIED);
    if (lives) EQUAL(count, 3);
    CHECK((httpdown_request_peer_addr(request).len > 4) == lives);
    CHECK((httpdown_request_local_addr(request).len > 10) == lives);
}

/* It has been ended: whatever would answer it says so. */
static void check_ended(httpdown_request *request) {
    httpdown_bytes body;
    CHECK(httpdown_request_cancelled(request));
    EQUAL(httpdown_request_body(request, 9, HTTPDOWN_FOREVER, &body), HTTPDOWN_STATUS_ALREADY_REPLIED);
    EQUAL(httpdown_request_wait_cancelled(request, 0), HTTPDOWN_STATUS_ALREADY_REPLIED);
    EQUAL(httpdown_request_defer(request), HTTPDOWN_STATUS_ALREADY_REPLIED);
    EQUAL(httpdown_reply_start(request, 200, NULL, 0), HTTPDOWN_STATUS_ALREADY_REPLIED);
    EQUAL(httpdown_reply_write(request, "x", 1, HTTPDOWN_FOREVER, NULL), HTTPDOWN_STATUS_ALREADY_REPLIED);
    EQUAL(httpdown_reply_finish(request), HTTPDOWN_STATUS_ALREADY_REPLIED);
    EQUAL(httpdown_reply_text(request, 200, "twice"), HTTPDOWN_STATUS_ALREADY_REPLIED);
    EQUAL(httpdown_reply_abort(request), HTTPDOWN_STATUS_ALREADY_REPLIED);
}

static void logs_behind_the_reply(httpdown_request *request, fixture *f) {
    httpdown_bytes body, path = httpdown_request_path(request), method = httpdown_request_method(request),
                         field = httpdown_request_header(request, "x-long");
    int read = httpdown_request_body(request, 9, HTTPDOWN_FOREVER, &body);
    CHECK(read == 0 || read == HTTPDOWN_STATUS_WOULD_BLOCK); /* in place */
    if (gate_value(&f->entered) == 1) EQUAL(httpdown_request_defer(request), 0);
    EQUAL(httpdown_reply_text(request, 200, "answered"), 0);
    CHECK(is(path, "/a/path") && is(method, "PURGE") && is(field, "a value that has memory of its own"));
    CHECK(read != 0 || is(body, "body"));
    CHECK(httpdown_request_server(request) == f->server);
    check_head(request, true);
    check_ended(request);
    gate_add(&f->entered);
}

static void ask_for_a_path(int fd) {
    put(fd, "PURGE /a/path?and=query HTTP/1.1\r\nhost: test\r\nx-long: a value that has memory of its own\r\n"
            "content-length: 4\r\n\r\nbody");
}

static void the_head_of_a_lent_request_outlives_the_reply(void) {
    for (int dispatch = 0; dispatch < 2; dispatch++) {
        fixture *f = begin_as(logs_behind_the_reply, dispatch);
        int fd = dial(f->server);
        for (int i = 1; i <= 3; i++) {
            ask_for_a_path(fd);
            expect(fd, 200, "answered");
            gate_wait(&f->entered, i);
        }
        close(fd);
        EQUAL(end(f).served, 3);
    }
}

/* What was kept too long finds nothing, though the next request may be in the same place. */
static void an_ended_request_is_never_another(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, NULL);
    options.dispatch = HTTPDOWN_DISPATCH_QUEUE;
    record_all(&options);
    httpdown_server *server = start(&options);
    httpdown_request *first, *second;
    size_t count;
    int fd = dial(server), other = dial(server);
    ask_for_a_path(fd);
    EQUAL(httpdown_next(server, HTTPDOWN_FOREVER, &first, 1, &count), 0);
    check_head(first, true);
    EQUAL(httpdown_reply_text(first, 200, "first"), 0);
    expect(fd, 200, "first");
    for (int i = 0; i < 50; i++) {
        ask_for_a_path(other);
        EQUAL(httpdown_next(server, HTTPDOWN_FOREVER, &second, 1, &count), 0);
        CHECK(second != first);
        check_head(first, false);
        check_ended(first);
        EQUAL(httpdown_reply(first, 200, NULL, 0, "for another client", 18), HTTPDOWN_STATUS_ALREADY_REPLIED);
        check_head(second, true);
        EQUAL(httpdown_reply_text(second, 200, "second"), 0);
        expect(other, 200, "second");
    }
    close(fd);
    close(other);
    EQUAL(end_server(f, 0).served, 51);
    free_fixture(f);
}

/* Retained, the head can be read for longer, by any thread; a stop does not wait for that. */
static httpdown_request *retained;

static void retains(httpdown_request *request, fixture *f) {
    EQUAL(httpdown_request_release(request), HTTPDOWN_STATUS_ALREADY_REPLIED); /* it was not retained */
    EQUAL(httpdown_request_retain(request), 0);
    EQUAL(httpdown_request_retain(request), 0);
    retained = request;
    EQUAL(httpdown_reply_text(request, 200, "answered"), 0);
    EQUAL(httpdown_request_retain(request), HTTPDOWN_STATUS_ALREADY_REPLIED);
    gate_add(&f->entered);
}

static void a_retained_head_outlives_the_handler_and_the_server(void) {
    for (int dispatch = 0; dispatch < 2; dispatch++) {
        fixture *f = begin_as(retains, dispatch);
        int fd = dial(f->server);
        ask_for_a_path(fd);
        expect(fd, 200, "answered");
        close(fd);
        EQUAL(end(f).served, 1);
        check_head(retained, true);
        check_ended(retained);
        CHECK(httpdown_request_server(retained) == NULL);
        EQUAL(httpdown_request_release(retained), 0);
        EQUAL(httpdown_request_release(retained), HTTPDOWN_STATUS_ALREADY_REPLIED);
        check_head(retained, false);
    }
}

/* Two threads answer the same request: one of them has done it, whatever comes in its place meanwhile. */
static void *replies_too(void *request) {
    int status = httpdown_reply_text(request, 200, "once");
    return (void *)(intptr_t)status;
}

static void of_two_answers_one_is_too_late(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, NULL);
    options.dispatch = HTTPDOWN_DISPATCH_QUEUE;
    httpdown_server *server = start(&options);
    int fd = dial(server);
    for (int i = 0; i < scaled(200); i++) {
        httpdown_request *request;
        size_t count;
        put(fd, GET("/"));
        EQUAL(httpdown_next(server, HTTPDOWN_FOREVER, &request, 1, &count), 0);
        pthread_t thread = spawn(replies_too, request);
        int here = httpdown_reply_text(request, 200, "once"), there;
        void *result;
        CHECK(pthread_join(thread, &result) == 0);
        there = (int)(intptr_t)result;
        CHECK((here == 0) != (there == 0));
        EQUAL(here + there, HTTPDOWN_STATUS_ALREADY_REPLIED);
        expect(fd, 200, "once");
    }
    close(fd);
    end_server(f, 0);
    free_fixture(f);
}

static httpdown_request *kept;

static void keeps(httpdown_request *request, fixture *f) {
    EQUAL(httpdown_request_defer(request), 0);
    kept = request;
    gate_add(&f->entered);
}

static void a_client_that_left_is_gone(void) {
    fixture *f = begin(keeps);
    int fd = dial(f->server);
    put(fd, GET("/"));
    gate_wait(&f->entered, 1);
    EQUAL(httpdown_request_wait_cancelled(kept, HTTPDOWN_NOW), HTTPDOWN_STATUS_WOULD_BLOCK);
    EQUAL(httpdown_request_wait_cancelled(kept, 20), HTTPDOWN_STATUS_WOULD_BLOCK);
    EQUAL(httpdown_request_wait_cancelled(kept, 0), HTTPDOWN_STATUS_WOULD_BLOCK);
    reset(fd);
    EQUAL(httpdown_request_wait_cancelled(kept, HTTPDOWN_FOREVER), HTTPDOWN_STATUS_GONE);
    CHECK(httpdown_request_cancelled(kept));
    EQUAL(httpdown_reply_start(kept, 200, NULL, 0), HTTPDOWN_STATUS_GONE); /* still owned */
    CHECK(is(httpdown_request_method(kept), "GET"));
    EQUAL(httpdown_reply_text(kept, 200, "nobody"), HTTPDOWN_STATUS_GONE);
    EQUAL(end(f).gone, 1);
}

/* The client has sent more than one request before it vanished. */
static void a_client_that_left_with_more_behind_is_gone(void) {
    fixture *f = begin(keeps);
    int fd = dial(f->server);
    put(fd, GET("/") "GET /next");
    gate_wait(&f->entered, 1);
    put(fd, " HTTP/1.1\r\n");
    nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL); /* lets it arrive; nothing depends on it */
    reset(fd);
    int status = httpdown_request_wait_cancelled(kept, 5000);
    httpdown_reply_text(kept, 200, "nobody");
    EQUAL(status, HTTPDOWN_STATUS_GONE);
    EQUAL(end(f).gone, 1);
}

/* A client that half-closes still reads: it has not left. When it then vanishes, it has. */
static void a_half_closed_client_is_answered(void) {
    fixture *f = begin(keeps);
    int fd = dial(f->server);
    put(fd, GET("/"));
    shutdown(fd, SHUT_WR);
    gate_wait(&f->entered, 1);
    EQUAL(httpdown_request_wait_cancelled(kept, 100), HTTPDOWN_STATUS_WOULD_BLOCK);
    EQUAL(httpdown_reply_text(kept, 200, "still here"), 0);
    expect(fd, 200, "still here");
    close(fd);
    EQUAL(end(f).served, 1);
}

static void a_half_closed_client_that_vanishes_is_gone(void) {
    fixture *f = begin(keeps);
    int fd = dial(f->server);
    put(fd, GET("/"));
    shutdown(fd, SHUT_WR);
    gate_wait(&f->entered, 1);
    nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL); /* lets the FIN arrive; nothing depends on it */
    reset(fd);
    int status = httpdown_request_wait_cancelled(kept, 5000);
    httpdown_reply_text(kept, 200, "nobody");
    EQUAL(status, HTTPDOWN_STATUS_GONE);
    end(f);
}

static void *asks_whether_cancelled(void *argument) {
    fixture *f = argument;
    EQUAL(httpdown_request_wait_cancelled(kept, HTTPDOWN_FOREVER), HTTPDOWN_STATUS_GONE);
    gate_add(&f->release);
    return NULL;
}

static void waits_elsewhere(httpdown_request *request, fixture *f) {
    static char block[65536];
    kept = request;
    EQUAL(httpdown_reply_start(request, 200, NULL, 0), 0);
    pthread_t asker = spawn(asks_whether_cancelled, f);
    gate_add(&f->entered);
    int status;
    do status = httpdown_reply_write(request, block, sizeof block, HTTPDOWN_FOREVER, NULL);
    while (status == 0);
    EQUAL(status, HTTPDOWN_STATUS_GONE);
    join(asker);
    EQUAL(httpdown_reply_finish(request), HTTPDOWN_STATUS_GONE);
}

/* One thread blocks in a write, another asks whether there is still use. */
static void cancellation_is_for_any_thread(void) {
    fixture *f = begin(waits_elsewhere);
    int fd = dial(f->server);
    put(fd, GET("/"));
    response r = take_head(fd);
    EQUAL(r.status, 200);
    gate_wait(&f->entered, 1);
    reset(fd);
    gate_wait(&f->release, 1);
    EQUAL(end(f).gone, 1);
}

/* ---- pipelines ---- */

static void counts(httpdown_request *request, fixture *f) {
    (void)f;
    httpdown_bytes path = httpdown_request_path(request);
    EQUAL(httpdown_reply(request, 200, NULL, 0, path.data, path.len), 0);
}

static void pipelined_requests_are_answered_in_order(void) {
    enum { COUNT = 200 };
    for (int dispatch = 0; dispatch < 2; dispatch++) {
        fixture *f = begin_as(counts, dispatch);
        int fd = dial(f->server);
        char text[64];
        for (int i = 0; i < COUNT; i++) {
            snprintf(text, sizeof text, "GET /%d HTTP/1.1\r\nhost: test\r\n\r\n", i);
            put(fd, text);
        }
        for (int i = 0; i < COUNT; i++) {
            snprintf(text, sizeof text, "/%d", i);
            expect(fd, 200, text);
        }
        close(fd);
        httpdown_stop_report report = end(f);
        EQUAL(report.requests, COUNT);
        EQUAL(report.served, COUNT);
    }
}

static void helpers_work_anywhere(void) {
    httpdown_bytes none = httpdown_str(NULL), empty = httpdown_str(""), text = httpdown_str("text");
    CHECK(none.data == NULL && none.len == 0);
    CHECK(empty.data != NULL && empty.len == 0);
    EQUAL(text.len, 4);
    CHECK(httpdown_bytes_equal(text, "text") && !httpdown_bytes_equal(text, "tex"));
    CHECK(!httpdown_bytes_equal(text, "texts") && !httpdown_bytes_equal(text, NULL));
    CHECK(httpdown_bytes_equal(empty, "") && httpdown_bytes_equal(none, ""));
    CHECK(!httpdown_bytes_equal((httpdown_bytes){NULL, 3}, "abc"));
    CHECK(strcmp(httpdown_version(), HTTPDOWN_VERSION) == 0);
    for (int status = -3; status < 120; status++) CHECK(strlen(httpdown_status_string(status)) > 0);
    CHECK(strcmp(httpdown_status_string(12345), httpdown_status_string(-1)) == 0);
}

/* Behind proxies: by the header of the PROXY protocol, and by fields of the head. */
static void says_who_asks(httpdown_request *request, void *user_data) {
    (void)user_data;
    httpdown_bytes peer = httpdown_request_peer_addr(request), local = httpdown_request_local_addr(request);
    httpdown_bytes proxy = httpdown_request_proxy_addr(request), addr = httpdown_request_client_addr(request);
    httpdown_bytes scheme = httpdown_request_client_scheme(request), host = httpdown_request_client_host(request);
    CHECK(addr.data == httpdown_request_client_addr(request).data);
    char text[512];
    snprintf(text, sizeof text, "%.*s %.*s %s %.*s %.*s %.*s", (int)peer.len, peer.data, (int)local.len, local.data,
             proxy.data == NULL ? "direct" : "proxied", (int)addr.len, addr.data, (int)scheme.len, scheme.data,
             (int)host.len, host.data);
    httpdown_reply_text(request, 200, text);
}

static void proxies_say_who_asks(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, says_who_asks);
    options.proxy_protocol_from = "127.0.0.0/8, unix:";
    options.trusted_proxies = "192.0.2.0/24";
    httpdown_server *server = start(&options);
    int fd = dial(server);
    put(fd, "PROXY TCP4 192.0.2.1 198.51.100.2 4660 80\r\n" GET("/"));
    expect(fd, 200, "192.0.2.1:4660 198.51.100.2:80 proxied 192.0.2.1:4660 http test");
    put(fd, "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.1.1.1, 203.0.113.7, 192.0.2.9\r\n"
            "X-Forwarded-Proto: https\r\nX-Forwarded-Host: b\r\n\r\n");
    expect(fd, 200, "192.0.2.1:4660 198.51.100.2:80 proxied 203.0.113.7 https b");
    close(fd);
    fd = dial(server);
    put(fd, GET("/"));
    CHECK(is_at_end(fd));
    close(fd);
    CHECK(httpdown_request_client_addr(NULL).data == NULL && httpdown_request_proxy_addr(NULL).data == NULL);
    end_server(f, 0);

    options.trusted_proxies = "192.0.2.1/24";
    options.user_data = NULL;
    options.destroy = NULL;
    char error[256] = "";
    EQUAL(httpdown_serve(&options, &server, error, sizeof error), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    CHECK(strstr(error, "trusted_proxies: \"192.0.2.1/24\" has bits behind its prefix") != NULL);
    free_fixture(f);
}

int main(int argc, char **argv) {
    (void)argc;
    tests_chosen = argv + 1;
    RUN(every_accessor_tells);
    RUN(targets_come_as_they_were_sent);
    RUN(queries_are_decoded);
    RUN(pairs_of_a_query_come_in_their_order);
    RUN(a_request_has_its_query);
    RUN(bodies_come_whole);
    RUN(bodies_come_in_pieces);
    RUN(a_body_over_the_limit_is_not_lost);
    RUN(what_was_read_is_missing_from_the_body);
    RUN(a_body_that_would_block_is_not_lost);
    RUN(a_part_that_would_block_is_not_lost);
    RUN(a_malformed_body_is_bad_and_one_that_is_cut_is_gone);
    RUN(a_body_may_be_left_unread);
    RUN(a_reply_has_what_it_was_given);
    RUN(a_reply_may_be_made_of_the_request);
    RUN(a_text_is_utf8);
    RUN(statuses_without_a_body_have_none);
    RUN(a_borrowed_body_is_released_when_sent);
    RUN(a_borrowed_body_is_released_when_the_client_leaves);
    RUN(a_borrowed_body_is_released_by_a_kill);
    RUN(a_borrowed_body_is_released_whatever_happens);
    RUN(pieces_go_out_chunked);
    RUN(pieces_are_sent_at_once);
    RUN(a_declared_length_goes_out_as_it_is);
    RUN(an_aborted_answer_is_cut);
    RUN(a_length_that_is_too_short_is_cut);
    RUN(a_length_that_is_too_long_is_refused);
    RUN(wrong_lengths_are_refused);
    RUN(the_right_length_is_sent_once);
    RUN(a_whole_reply_after_a_start_cuts);
    RUN(a_finish_without_a_start_is_500);
    RUN(a_slow_client_slows_the_writer);
    RUN(writing_in_place_never_blocks);
    RUN(no_answer_is_500);
    RUN(an_abort_is_500);
    RUN(deferred_requests_are_answered_elsewhere);
    RUN(a_deferred_request_can_be_answered_in_the_handler);
    RUN(a_deferred_request_can_be_streamed);
    RUN(the_head_of_a_lent_request_outlives_the_reply);
    RUN(an_ended_request_is_never_another);
    RUN(a_retained_head_outlives_the_handler_and_the_server);
    RUN(of_two_answers_one_is_too_late);
    RUN(a_client_that_left_is_gone);
    RUN(a_client_that_left_with_more_behind_is_gone);
    RUN(a_half_closed_client_is_answered);
    RUN(a_half_closed_client_that_vanishes_is_gone);
    RUN(cancellation_is_for_any_thread);
    RUN(pipelined_requests_are_answered_in_order);
    RUN(helpers_work_anywhere);
    RUN(proxies_say_who_asks);
    return test_end(argv[0]);
}
