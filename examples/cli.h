/* What the example programs share: flags, durations as Go writes them ("300ms", "1.5s", "1m30s"), the address, the report
 * as JSON. */
#ifndef CLI_H
#define CLI_H

#include <httpdown.h>
#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Reads a duration of LEN characters; false if it is none, is negative, or exceeds 49 days (32 bits of milliseconds). */
static inline bool cli_duration(const char *text, size_t len, uint32_t *ms) {
    static const struct {
        const char *unit;
        double ms;
    } units[] = {{"ns", 1e-6}, {"us", 1e-3}, {"ms", 1}, {"s", 1e3}, {"m", 60e3}, {"h", 3600e3}};
    const size_t unit_count = sizeof units / sizeof *units;
    char copy[64];
    if (len == 0 || len >= sizeof copy || memchr(text, '\0', len) != NULL) return false;
    memcpy(copy, text, len);
    copy[len] = '\0';
    if (strcmp(copy, "0") == 0) return *ms = 0, true;
    double total = 0;
    for (char *rest = copy; *rest != '\0';) {
        size_t digits = strspn(rest, "0123456789.");
        if (digits == 0) return false;
        char *unit;
        double number = strtod(rest, &unit);
        if (unit != rest + digits) return false;
        size_t letters = strcspn(unit, "0123456789."), i = 0;
        while (i < unit_count && (strlen(units[i].unit) != letters || memcmp(units[i].unit, unit, letters) != 0)) i++;
        if (i == unit_count) return false;
        total += number * units[i].ms;
        rest = unit + letters;
    }
    if (total > 4294967293.0) return false;
    *ms = (uint32_t)llround(total);
    return true;
}

/* What -tls-cert and -tls-key say. Without them there is no TLS. */
static httpdown_tls cli_tls;

/* Writes where SERVER listens, as a URL if it is one; "" if SERVER does not tell. */
static inline void cli_write_address(const httpdown_server *server, char *text, size_t size) {
    char addr[512];
    *text = '\0';
    if (httpdown_local_addr(server, 0, addr, sizeof addr) != 0) return;
    if (strncmp(addr, "unix:", 5) == 0) snprintf(text, size, "%s", addr);
    else snprintf(text, size, "%s://%s/", cli_tls.struct_size == 0 ? "http" : "https", addr);
}

/* Tells where SERVER listens. */
static inline void cli_tell_address(const httpdown_server *server) {
    char address[600];
    cli_write_address(server, address, sizeof address);
    if (*address == '\0') return;
    printf("serving on %s with pid %d\n", address, getpid());
    fflush(stdout);
}

/* The callback for phases, for a program that only has to tell its address. */
static inline void cli_on_phase(const httpdown_server *server, int phase, void *user_data) {
    (void)user_data;
    if (phase == HTTPDOWN_PHASE_SERVING) cli_tell_address(server);
}

/* The callback for messages: above all, what restarts tell. */
static inline void cli_on_log(int level, const char *message, void *user_data) {
    (void)user_data;
    fprintf(stderr, "%s %d: %s\n", level == HTTPDOWN_LOG_ERROR ? "error" : "log", getpid(), message);
}

/* The same for a program that says only what is amiss: above all, that the files of TLS could not be read again
 * (SIGHUP), and that the program could not be restarted (SIGUSR2). */
static inline void cli_on_warning(int level, const char *message, void *user_data) {
    (void)user_data;
    if (level > HTTPDOWN_LOG_WARNING) return;
    fprintf(stderr, "%s: %s\n", level == HTTPDOWN_LOG_ERROR ? "error" : "warning", message);
}

/* The value of flag NAME ("addr" for -addr or --addr, VALUE behind a space or a '='), if argv[*i] is that flag. */
static inline const char *cli_flag(char **argv, int *i, const char *name) {
    const char *flag = argv[*i];
    if (*flag != '-') return NULL;
    flag += flag[1] == '-' ? 2 : 1;
    size_t len = strlen(name);
    if (strncmp(flag, name, len) != 0) return NULL;
    if (flag[len] == '=') return flag + len + 1;
    if (flag[len] != '\0') return NULL;
    if (argv[*i + 1] == NULL) {
        fprintf(stderr, "%s: -%s needs a value\n", argv[0], name);
        exit(2);
    }
    return argv[++*i];
}

/* Whether argv[*i] is a flag of TLS; then its value is in cli_tls. */
static inline bool cli_tls_flag(char **argv, int *i) {
    const char *value;
    if ((value = cli_flag(argv, i, "tls-cert"))) cli_tls.cert_file = value;
    else if ((value = cli_flag(argv, i, "tls-key"))) cli_tls.key_file = value;
    else return false;
    cli_tls.struct_size = sizeof cli_tls;
    return true;
}

/* The settings for the option `tls`. */
static inline const httpdown_tls *cli_tls_settings(void) {
    return cli_tls.struct_size == 0 ? NULL : &cli_tls;
}

/* As an option's milliseconds, where 0 would mean the default. Exits if it is no duration. */
static inline uint32_t cli_timeout(const char *program, const char *text) {
    uint32_t ms;
    if (!cli_duration(text, strlen(text), &ms)) {
        fprintf(stderr, "%s: '%s' is not a duration\n", program, text);
        exit(2);
    }
    return ms == 0 ? 0xFFFFFFFEu : ms; /* HTTPDOWN_NOW */
}

/* Prints the report of a server that has stopped as one line of JSON, for programs to read (lossmeter does): each field
 * by its name. Nothing if there was no stop, because no server was started. */
static inline void cli_print_report(const httpdown_stop_report *report) {
    const struct {
        const char *name;
        uint64_t value;
    } fields[] = {
        {"phase", (uint64_t)report->phase},
        {"status", (uint64_t)report->status},
        {"stop_duration_ms", report->stop_duration_ms},
        {"connections", report->connections},
        {"conns_open", report->conns_open},
        {"conns_new", report->conns_new},
        {"conns_active", report->conns_active},
        {"conns_idle", report->conns_idle},
        {"conns_hijacked", report->conns_hijacked},
        {"conns_closed", report->conns_closed},
        {"closed_idle", report->closed_idle},
        {"raced", report->raced},
        {"conns_gone", report->conns_gone},
        {"conns_timed_out", report->conns_timed_out},
        {"conns_killed", report->conns_killed},
        {"requests", report->requests},
        {"served", report->served},
        {"failed", report->failed},
        {"gone", report->gone},
        {"killed", report->killed},
        {"abandoned", report->abandoned},
        {"hijacked_killed", report->hijacked_killed},
        {"unaccepted", report->unaccepted},
        {"bytes_unacked", report->bytes_unacked},
        {"events_dropped", report->events_dropped},
        {"conns_handshaking", report->conns_handshaking},
        {"conns_tls_failed", report->conns_tls_failed},
        {"conns_tls_timed_out", report->conns_tls_timed_out},
        {"timed_out", report->timed_out},
        {"overdue", report->overdue},
        {"successor_pid", report->successor_pid},
    };
    if (report->phase != HTTPDOWN_PHASE_STOPPED) return;
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        printf("%s\"%s\":%" PRIu64, i == 0 ? "{" : ",", fields[i].name, fields[i].value);
    puts("}");
}

#endif
