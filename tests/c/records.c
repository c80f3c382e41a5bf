/* What became of each request, lines of an access log, and the program's own data of a request. */
#include "test.h"

/* Keeps a copy of the last record, and counts them. */
static struct {
    gate told;
    httpdown_request_record last;
    char target[64], line[512];
    int ends[5];
    void *data;
} seen = {.told = GATE};

static void on_done(const httpdown_request_record *record, void *user_data) {
    CHECK(user_data != NULL && record->struct_size == sizeof *record);
    CHECK(is_client_addr(record->peer.data, record->peer.len));
    CHECK(record->end >= HTTPDOWN_END_SERVED && record->end <= HTTPDOWN_END_KILLED);
    CHECK(record->began_us > 0 && record->ended_us >= 0);
    size_t len = 0;
    EQUAL(httpdown_log_line(record, HTTPDOWN_LOG_COMBINED, seen.line, sizeof seen.line, &len), 0);
    EQUAL(len, strlen(seen.line));
    snprintf(seen.target, sizeof seen.target, "%.*s", (int)record->target.len, record->target.data);
    seen.last = *record;
    seen.data = record->data;
    seen.ends[record->end]++;
    gate_add(&seen.told);
}

static httpdown_options telling(fixture *f, httpdown_handler_fn handler) {
    httpdown_options options = options_for(f, handler);
    options.on_done = on_done;
    return options;
}

static void a_record_tells_what_was_asked_and_answered(void) {
    fixture *f = new_fixture();
    httpdown_options options = telling(f, hello);
    httpdown_server *server = start(&options);
    int fd = dial(server);
    put(fd, "GET /a?b HTTP/1.1\r\nHost: test\r\nUser-Agent: a \"test\"\r\n\r\n");
    response r = take(fd);
    EQUAL(r.status, 200);
    free(r.body);
    gate_wait(&seen.told, 1);
    EQUAL(seen.last.end, HTTPDOWN_END_SERVED);
    EQUAL(seen.last.status_code, 200);
    EQUAL(seen.last.version, 11);
    EQUAL(seen.last.tls, 0);
    EQUAL(seen.last.conn_id, 0);
    EQUAL(seen.last.number, 1);
    EQUAL(seen.last.received, 0);
    EQUAL(seen.last.sent, 13);
    CHECK(seen.last.head_us >= 0 && seen.last.called_us >= seen.last.head_us);
    CHECK(seen.last.answered_us >= seen.last.called_us && seen.last.flushed_us >= seen.last.answered_us);
    EQUAL(seen.last.acknowledged_us, -1);
    CHECK(strcmp(seen.target, "/a?b") == 0);
    CHECK(strstr(seen.line, "] \"GET /a?b HTTP/1.1\" 200 13 \"-\" \"a \\\"test\\\"\"") != NULL);
    CHECK(seen.last.data == NULL);
    close(fd);
    httpdown_stop_report report = end_server(f, 0);
    EQUAL(report.served, seen.ends[HTTPDOWN_END_SERVED]);
    free_fixture(f);
}

static void dies(httpdown_request *request, void *user_data) {
    (void)user_data;
    CHECK(httpdown_reply_start(request, 200, NULL, 0) == 0);
    CHECK(httpdown_reply_write(request, "half", 4, HTTPDOWN_FOREVER, NULL) == 0);
    httpdown_reply_abort(request);
}

static void the_records_are_the_columns_of_the_report(void) {
    fixture *f = new_fixture();
    httpdown_options options = telling(f, dies);
    options.ready_path = "/ready";
    httpdown_server *server = start(&options);
    const char *requests[] = {
        "GET /ready HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: test\r\n\r\n",
        "nonsense\r\n\r\n",
    };
    for (int i = 0; i < 3; i++) {
        int fd = dial(server);
        put(fd, requests[i]);
        response r = take(fd);
        free(r.body);
        close(fd);
    }
    httpdown_stop_report report = end_server(f, 0);
    EQUAL(gate_value(&seen.told), report.requests);
    EQUAL(seen.ends[HTTPDOWN_END_SERVED], report.served);
    EQUAL(seen.ends[HTTPDOWN_END_FAILED], report.failed);
    EQUAL(report.served, 1);
    EQUAL(report.failed, 1);
    free_fixture(f);
}

static void records_can_be_pulled(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, hello);
    options.pull_events = HTTPDOWN_EVENT_DONE | HTTPDOWN_EVENT_PHASE;
    httpdown_server *server = start(&options);
    get(server, 200, NULL);
    get(server, 200, NULL);
    EQUAL(httpdown_stop(server), 0);
    int records = 0;
    httpdown_event event = {.struct_size = sizeof event};
    while (httpdown_next_event(server, HTTPDOWN_FOREVER, &event) == 0) {
        if (event.kind != HTTPDOWN_EVENT_DONE) {
            CHECK(event.record == NULL);
            continue;
        }
        EQUAL(event.conn_id, records);
        EQUAL(event.record->conn_id, records);
        CHECK(httpdown_bytes_equal(event.record->method, "GET"));
        records++;
    }
    EQUAL(records, 2);
    end_server(f, 0);
    options.on_done = on_done;
    char error[256];
    EQUAL(httpdown_serve(&options, &server, error, sizeof error), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    CHECK(strstr(error, "pull_events") != NULL);
    UNTIL(thread_count() == 1);
}

static void lines_can_be_written_from_records_of_ones_own(void) {
    httpdown_request_record record = {
        .struct_size = sizeof record,
        .end = HTTPDOWN_END_GONE,
        .version = 10,
        .sent = 7,
        .began_us = 784111777000000,
        .head_us = 1,
        .called_us = -1,
        .answered_us = -1,
        .flushed_us = -1,
        .acknowledged_us = -1,
        .peer = httpdown_str("127.0.0.1:80"),
        .method = httpdown_str("GET"),
        .target = {"/\"\n\xff", 4},
    };
    const char *common = "127.0.0.1 - - [06/Nov/1994:08:49:37 +0000] \"GET /\\\"\\x0a\\xff HTTP/1.0\" 000 7";
    char line[1024];
    size_t len = 0;
    EQUAL(httpdown_log_line(&record, HTTPDOWN_LOG_COMMON, line, sizeof line, &len), 0);
    CHECK(strcmp(line, common) == 0);
    EQUAL(len, strlen(common));
    EQUAL(httpdown_log_line(&record, HTTPDOWN_LOG_COMMON, line, len + 1, &len), 0);
    len = 0;
    EQUAL(httpdown_log_line(&record, HTTPDOWN_LOG_COMMON, line, strlen(common), &len), HTTPDOWN_STATUS_TOO_LARGE);
    EQUAL(len, strlen(common));
    EQUAL(line[0], 0);
    EQUAL(httpdown_log_line(&record, HTTPDOWN_LOG_COMMON, NULL, 0, &len), HTTPDOWN_STATUS_TOO_LARGE);
    EQUAL(httpdown_log_line(&record, HTTPDOWN_LOG_JSON, line, sizeof line, &len), 0);
    CHECK(strstr(line, "\"target\":\"/\\\"\\n\xef\xbf\xbd\"") != NULL);
    CHECK(strstr(line, "\"end\":\"gone\"") != NULL && strstr(line, "\"called_us\":null") != NULL);
    /* Of an older program, whose record ends where `referer` begins. */
    record.struct_size = offsetof(httpdown_request_record, referer);
    EQUAL(httpdown_log_line(&record, HTTPDOWN_LOG_COMBINED, line, sizeof line, &len), 0);
    CHECK(strncmp(line, common, strlen(common)) == 0 && strcmp(line + strlen(common), " \"-\" \"-\"") == 0);
    EQUAL(httpdown_log_line(&record, 3, line, sizeof line, &len), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    EQUAL(httpdown_log_line(NULL, 0, line, sizeof line, &len), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    EQUAL(httpdown_log_line(&record, 0, NULL, 1, &len), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    EQUAL(httpdown_log_line(&record, 0, line, sizeof line, NULL), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    record.struct_size = 8;
    EQUAL(httpdown_log_line(&record, 0, line, sizeof line, &len), HTTPDOWN_STATUS_INVALID_ARGUMENT);
}

/* What was destroyed, in order. */
static gate destroyed = GATE;
static const char *order[8];

static void destroy(void *data) {
    order[gate_value(&destroyed)] = data;
    gate_add(&destroyed);
}

static void sets_data(httpdown_request *request, void *user_data) {
    (void)user_data;
    CHECK(httpdown_request_data(request) == NULL);
    EQUAL(httpdown_request_set_data(request, "first", destroy), 0);
    CHECK(strcmp(httpdown_request_data(request), "first") == 0);
    EQUAL(gate_value(&destroyed), 0);
    EQUAL(httpdown_request_set_data(request, "second", destroy), 0);
    EQUAL(gate_value(&destroyed), 1);
    httpdown_reply_text(request, 200, "Hello, World!");
    CHECK(strcmp(httpdown_request_data(request), "second") == 0);
    EQUAL(httpdown_request_set_data(request, "late", destroy), HTTPDOWN_STATUS_ALREADY_REPLIED);
    EQUAL(gate_value(&destroyed), 1);
}

static void data_is_destroyed_once_when_nobody_needs_it_any_more(void) {
    fixture *f = new_fixture();
    for (int recorded = 0; recorded < 2; recorded++) {
        gate fresh = GATE;
        destroyed = fresh;
        httpdown_options options = recorded ? telling(f, sets_data) : options_for(f, sets_data);
        options.destroy = NULL;
        httpdown_server *server = start(&options);
        get(server, 200, NULL);
        gate_wait(&destroyed, 2);
        CHECK(strcmp(order[0], "first") == 0 && strcmp(order[1], "second") == 0);
        if (recorded) CHECK(strcmp(seen.data, "second") == 0);
        EQUAL(httpdown_stop(server), 0);
        httpdown_free(server);
        EQUAL(gate_value(&destroyed), 2);
    }
    EQUAL(httpdown_request_set_data(NULL, NULL, destroy), HTTPDOWN_STATUS_INVALID_ARGUMENT);
    CHECK(httpdown_request_data(NULL) == NULL);
    free(f);
}

static void data_outlives_a_kill_as_the_request_does(void) {
    fixture *f = new_fixture();
    httpdown_options options = telling(f, NULL);
    httpdown_server *server = start(&options);
    int fd = dial(server);
    put(fd, "GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    httpdown_request *request;
    size_t count;
    EQUAL(httpdown_next(server, HTTPDOWN_FOREVER, &request, 1, &count), 0);
    EQUAL(httpdown_request_set_data(request, "data", destroy), 0);
    EQUAL(httpdown_kill_begin(server), 0);
    gate_wait(&seen.told, 1);
    EQUAL(seen.last.end, HTTPDOWN_END_KILLED);
    CHECK(strcmp(seen.data, "data") == 0);
    CHECK(strcmp(httpdown_request_data(request), "data") == 0);
    EQUAL(gate_value(&destroyed), 0);
    EQUAL(httpdown_reply_abort(request), 0);
    EQUAL(httpdown_wait(server, HTTPDOWN_FOREVER, NULL), HTTPDOWN_STATUS_KILLED);
    gate_wait(&destroyed, 1);
    httpdown_free(server);
    gate_wait(&f->destroyed, 1);
    EQUAL(gate_value(&destroyed), 1);
    CHECK(httpdown_request_data(request) == NULL);
    close(fd);
    free_fixture(f);
}

static void destroys_before(void *data) {
    /* The server's own data lives. */
    EQUAL(gate_value(&((fixture *)data)->destroyed), 0);
    gate_add(&destroyed);
}

static void keeps(httpdown_request *request, void *user_data) {
    EQUAL(httpdown_request_set_data(request, user_data, destroys_before), 0);
    httpdown_reply_text(request, 200, "Hello, World!");
}

static void the_servers_data_is_destroyed_last(void) {
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, keeps);
    options.pull_events = HTTPDOWN_EVENT_DONE;
    httpdown_server *server = start(&options);
    get(server, 200, NULL);
    /* The record waits in the queue of events, and nobody takes it. */
    EQUAL(httpdown_stop(server), 0);
    EQUAL(gate_value(&destroyed), 0);
    httpdown_free(server);
    gate_wait(&f->destroyed, 1);
    EQUAL(gate_value(&destroyed), 1);
    free_fixture(f);
}

static int told_to[2];

static void destroy_tells(void *data) {
    (void)data;
    CHECK(write(told_to[1], "x", 1) == 1);
}

static void tells_its_end(httpdown_request *request, void *user_data) {
    (void)user_data;
    EQUAL(httpdown_request_set_data(request, "data", destroy_tells), 0);
    httpdown_reply_text(request, 200, "Hello, World!");
}

static void a_forked_child_destroys_nothing(void) {
    CHECK(pipe2(told_to, O_NONBLOCK) == 0);
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, tells_its_end);
    options.pull_events = HTTPDOWN_EVENT_DONE;
    httpdown_server *server = start(&options);
    get(server, 200, NULL);
    httpdown_event event = {.struct_size = sizeof event};
    EQUAL(httpdown_next_event(server, HTTPDOWN_FOREVER, &event), 0);
    CHECK(strcmp(event.record->data, "data") == 0);
    fflush(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        if (httpdown_next_event(server, HTTPDOWN_NOW, &event) != HTTPDOWN_STATUS_FORKED) _exit(1);
        exit(0); /* with the destructors of the thread's locals */
    }
    int status;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {}
    EQUAL(status, 0);
    char byte;
    CHECK(read(told_to[0], &byte, 1) < 0 && errno == EAGAIN);
    EQUAL(httpdown_next_event(server, HTTPDOWN_NOW, &event), HTTPDOWN_STATUS_WOULD_BLOCK);
    UNTIL(read(told_to[0], &byte, 1) == 1); /* when the handler has returned, too */
    end_server(f, 0);
    free_fixture(f);
}

int main(int argc, char **argv) {
    (void)argc;
    tests_chosen = argv + 1;
    RUN(a_record_tells_what_was_asked_and_answered);
    RUN(the_records_are_the_columns_of_the_report);
    RUN(records_can_be_pulled);
    RUN(lines_can_be_written_from_records_of_ones_own);
    RUN(data_is_destroyed_once_when_nobody_needs_it_any_more);
    RUN(data_outlives_a_kill_as_the_request_does);
    RUN(the_servers_data_is_destroyed_last);
    RUN(a_forked_child_destroys_nothing);
    return test_end(argv[0]);
}
