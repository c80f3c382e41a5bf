/* A server that writes an access log: one line for each request that has ended, to standard output.
 *
 *     access_log [-addr HOST:PORT] [-format common|combined|json]
 *
 * The handler notes who has asked (`?user=NAME`), as the request's own data, and the line ends with that name. */
#define _POSIX_C_SOURCE 200809L
#include <httpdown.h>
#include <stdlib.h>
#include <unistd.h>

#include "cli.h"

static int format = HTTPDOWN_LOG_COMBINED;

static void on_request(httpdown_request *request, void *user_data) {
    (void)user_data;
    char *user = malloc(64);
    size_t len;
    httpdown_bytes query = httpdown_request_query(request);
    /* Only names of letters: what a client sends must not forge a line of the log. */
    bool has_user = user != NULL && httpdown_query_value(query, "user", user, 64, &len) == 0 && len > 0 &&
                    strspn(user, "abcdefghijklmnopqrstuvwxyz") == len;
    /* The data is freed when the request has ended and its line is written. */
    if (!has_user || httpdown_request_set_data(request, user, free) != 0) free(user);
    httpdown_reply_text(request, 200, "Hello, World!");
}

/* On the events thread: a slow disk delays lines, and no request. */
static void on_done(const httpdown_request_record *record, void *user_data) {
    (void)user_data;
    char small[512], *line = small;
    size_t len;
    int status = httpdown_log_line(record, format, small, sizeof small, &len);
    if (status == HTTPDOWN_STATUS_TOO_LARGE && (line = malloc(len + 1)) != NULL)
        status = httpdown_log_line(record, format, line, len + 1, &len);
    if (status == 0 && line != NULL) {
        if (record->data != NULL) printf("%s (%s)\n", line, (const char *)record->data);
        else printf("%s\n", line);
        fflush(stdout);
    }
    if (line != small) free(line);
}

int main(int argc, char **argv) {
    httpdown_options options = {
        .struct_size = sizeof options,
        .addr = "127.0.0.1:8080",
        .handler = on_request,
        .on_phase = cli_on_phase,
        .on_log = cli_on_warning,
        .on_done = on_done,
    };
    for (int i = 1; i < argc; i++) {
        const char *value;
        if ((value = cli_flag(argv, &i, "addr"))) options.addr = value;
        else if ((value = cli_flag(argv, &i, "format"))) {
            if (strcmp(value, "common") == 0) format = HTTPDOWN_LOG_COMMON;
            else if (strcmp(value, "json") == 0) format = HTTPDOWN_LOG_JSON;
            else if (strcmp(value, "combined") != 0) return fprintf(stderr, "%s: no such format\n", value), 2;
        } else return fprintf(stderr, "usage: %s [-addr HOST:PORT] [-format common|combined|json]\n", argv[0]), 2;
    }
    char error[256] = "";
    int status = httpdown_run(&options, NULL, error, sizeof error);
    if (status != 0) fprintf(stderr, "%s: %s\n", httpdown_status_string(status), error);
    return status != 0;
}
