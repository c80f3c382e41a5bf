/* What programs that are compiled already rely on: sizes, offsets and numbers, on 64-bit machines. A change here breaks
 * them: the SONAME and the changelog must say so. Fields appended to a struct that knows its own size do not; they come
 * here too. */
#include <httpdown.h>
#include <stdio.h>
#include <string.h>

#ifdef __cplusplus
#define HOLDS(condition) static_assert(condition, #condition)
#else
#define HOLDS(condition) _Static_assert(condition, #condition)
#endif
#define SIZE(type, size) HOLDS(sizeof(type) == (size))
#define AT(type, field, offset) HOLDS(offsetof(type, field) == (offset))
#define VALUE(name, value) HOLDS((name) == (value))

SIZE(httpdown_stats, 32);
AT(httpdown_stats, bump_avg, 0);
AT(httpdown_stats, bump_sum, 8);
AT(httpdown_stats, bump_histogram, 16);
AT(httpdown_stats, bump_time, 24);

AT(httpdown_options, struct_size, 0);
AT(httpdown_options, addr, 8);
AT(httpdown_options, fds, 16);
AT(httpdown_options, fd_count, 24);
AT(httpdown_options, handler, 32);
AT(httpdown_options, user_data, 40);
AT(httpdown_options, destroy, 48);
AT(httpdown_options, stats, 56);
AT(httpdown_options, on_conn_state, 88);
AT(httpdown_options, on_phase, 96);
AT(httpdown_options, on_log, 104);
AT(httpdown_options, clock, 112);
// options: begin offsets (made from src/options.toml by `make options`)
AT(httpdown_options, stop_timeout_ms, 120);
AT(httpdown_options, kill_timeout_ms, 124);
AT(httpdown_options, lame_duck_ms, 128);
AT(httpdown_options, header_timeout_ms, 132);
AT(httpdown_options, dispatch, 136);
AT(httpdown_options, pool_threads, 140);
AT(httpdown_options, io_threads, 144);
AT(httpdown_options, fds_shared, 148);
AT(httpdown_options, pull_events, 152);
AT(httpdown_options, idle_grace_ms, 156);
AT(httpdown_options, quiesce_timeout_ms, 160);
AT(httpdown_options, linger_timeout_ms, 164);
AT(httpdown_options, ready_path, 168);
AT(httpdown_options, lame_duck_min_ms, 176);
AT(httpdown_options, lame_duck_quiet_ms, 180);
AT(httpdown_options, idle_timeout_ms, 184);
AT(httpdown_options, keep_alive_header, 188);
AT(httpdown_options, second_signal_ms, 192);
AT(httpdown_options, reuse_port, 196);
AT(httpdown_options, tls, 200);
AT(httpdown_options, reload_on_hup, 208);
AT(httpdown_options, body_timeout_ms, 212);
AT(httpdown_options, write_timeout_ms, 216);
AT(httpdown_options, least_rate, 220);
AT(httpdown_options, body_buffer, 224);
AT(httpdown_options, drain_rate, 228);
AT(httpdown_options, on_done, 232);
AT(httpdown_options, proxy_protocol_from, 240);
AT(httpdown_options, trusted_proxies, 248);
AT(httpdown_options, forwarded_by, 256);
AT(httpdown_options, max_body_size, 264);
AT(httpdown_options, max_headers, 272);
AT(httpdown_options, max_head_size, 276);
AT(httpdown_options, max_target_size, 280);
AT(httpdown_options, max_conn_requests, 284);
AT(httpdown_options, max_conns, 288);
AT(httpdown_options, max_client_conns, 292);
AT(httpdown_options, max_queued, 296);
AT(httpdown_options, tcp_backlog, 300);
AT(httpdown_options, v6_only, 304);
AT(httpdown_options, tcp_keepalive_ms, 308);
AT(httpdown_options, tcp_user_timeout_ms, 312);
AT(httpdown_options, receive_buffer, 316);
AT(httpdown_options, send_buffer, 320);
AT(httpdown_options, abort_on_close, 324);
AT(httpdown_options, handler_timeout_ms, 328);
AT(httpdown_options, trim_memory, 332);
AT(httpdown_options, canary, 336);
AT(httpdown_options, restart, 344);
SIZE(httpdown_options, 352);
// options: end offsets

SIZE(httpdown_stop_report, 248);
AT(httpdown_stop_report, struct_size, 0);
AT(httpdown_stop_report, phase, 8);
AT(httpdown_stop_report, status, 12);
AT(httpdown_stop_report, stop_duration_ms, 16);
AT(httpdown_stop_report, connections, 24);
AT(httpdown_stop_report, conns_open, 32);
AT(httpdown_stop_report, conns_new, 40);
AT(httpdown_stop_report, conns_active, 48);
AT(httpdown_stop_report, conns_idle, 56);
AT(httpdown_stop_report, conns_hijacked, 64);
AT(httpdown_stop_report, conns_closed, 72);
AT(httpdown_stop_report, closed_idle, 80);
AT(httpdown_stop_report, raced, 88);
AT(httpdown_stop_report, conns_gone, 96);
AT(httpdown_stop_report, conns_timed_out, 104);
AT(httpdown_stop_report, conns_killed, 112);
AT(httpdown_stop_report, requests, 120);
AT(httpdown_stop_report, served, 128);
AT(httpdown_stop_report, failed, 136);
AT(httpdown_stop_report, gone, 144);
AT(httpdown_stop_report, killed, 152);
AT(httpdown_stop_report, abandoned, 160);
AT(httpdown_stop_report, hijacked_killed, 168);
AT(httpdown_stop_report, unaccepted, 176);
AT(httpdown_stop_report, bytes_unacked, 184);
AT(httpdown_stop_report, events_dropped, 192);
AT(httpdown_stop_report, conns_handshaking, 200);
AT(httpdown_stop_report, conns_tls_failed, 208);
AT(httpdown_stop_report, conns_tls_timed_out, 216);
AT(httpdown_stop_report, timed_out, 224);
AT(httpdown_stop_report, overdue, 232);
AT(httpdown_stop_report, successor_pid, 240);

SIZE(httpdown_event, 616);
AT(httpdown_event, struct_size, 0);
AT(httpdown_event, kind, 8);
AT(httpdown_event, code, 12);
AT(httpdown_event, conn_id, 16);
AT(httpdown_event, value, 24);
AT(httpdown_event, name, 32);
AT(httpdown_event, text, 96);
AT(httpdown_event, record, 608);

SIZE(httpdown_request_record, 208);
AT(httpdown_request_record, struct_size, 0);
AT(httpdown_request_record, end, 8);
AT(httpdown_request_record, status_code, 12);
AT(httpdown_request_record, version, 16);
AT(httpdown_request_record, tls, 20);
AT(httpdown_request_record, conn_id, 24);
AT(httpdown_request_record, number, 32);
AT(httpdown_request_record, received, 40);
AT(httpdown_request_record, sent, 48);
AT(httpdown_request_record, began_us, 56);
AT(httpdown_request_record, head_us, 64);
AT(httpdown_request_record, called_us, 72);
AT(httpdown_request_record, answered_us, 80);
AT(httpdown_request_record, flushed_us, 88);
AT(httpdown_request_record, acknowledged_us, 96);
AT(httpdown_request_record, ended_us, 104);
AT(httpdown_request_record, peer, 112);
AT(httpdown_request_record, method, 128);
AT(httpdown_request_record, target, 144);
AT(httpdown_request_record, referer, 160);
AT(httpdown_request_record, user_agent, 176);
AT(httpdown_request_record, data, 192);
AT(httpdown_request_record, overdue, 200);
AT(httpdown_request_record, reserved, 204);

SIZE(httpdown_bytes, 16);
AT(httpdown_bytes, data, 0);
AT(httpdown_bytes, len, 8);

SIZE(httpdown_credentials, 12);
AT(httpdown_credentials, pid, 0);
AT(httpdown_credentials, uid, 4);
AT(httpdown_credentials, gid, 8);

SIZE(httpdown_header, 32);
AT(httpdown_header, name, 0);
AT(httpdown_header, value, 16);

SIZE(httpdown_item, 32);
AT(httpdown_item, request, 0);
AT(httpdown_item, user_data, 8);
AT(httpdown_item, ready, 16);
AT(httpdown_item, reserved_0, 20);
AT(httpdown_item, stream, 24);

SIZE(httpdown_certificate, 48);
AT(httpdown_certificate, cert_file, 0);
AT(httpdown_certificate, key_file, 8);
AT(httpdown_certificate, cert, 16);
AT(httpdown_certificate, key, 32);

SIZE(httpdown_tls, 152);
AT(httpdown_tls, struct_size, 0);
AT(httpdown_tls, cert_file, 8);
AT(httpdown_tls, key_file, 16);
AT(httpdown_tls, cert, 24);
AT(httpdown_tls, key, 40);
AT(httpdown_tls, more, 56);
AT(httpdown_tls, more_count, 64);
AT(httpdown_tls, client_auth, 72);
AT(httpdown_tls, min_version, 76);
AT(httpdown_tls, ca_file, 80);
AT(httpdown_tls, ca, 88);
AT(httpdown_tls, crl_file, 104);
AT(httpdown_tls, crl, 112);
AT(httpdown_tls, ticket_keys, 128);
AT(httpdown_tls, handshake_timeout_ms, 144);
AT(httpdown_tls, handshakes, 148);

SIZE(httpdown_tls_info, 144);
AT(httpdown_tls_info, struct_size, 0);
AT(httpdown_tls_info, version, 8);
AT(httpdown_tls_info, resumed, 12);
AT(httpdown_tls_info, cipher_suite, 16);
AT(httpdown_tls_info, server_name, 32);
AT(httpdown_tls_info, alpn, 48);
AT(httpdown_tls_info, client_certificate, 64);
AT(httpdown_tls_info, client_subject, 80);
AT(httpdown_tls_info, client_names, 96);
AT(httpdown_tls_info, client_fingerprint, 112);

SIZE(httpdown_restart_options, 96);
AT(httpdown_restart_options, struct_size, 0);
AT(httpdown_restart_options, program, 8);
AT(httpdown_restart_options, argv, 16);
AT(httpdown_restart_options, envp, 24);
AT(httpdown_restart_options, directory, 32);
AT(httpdown_restart_options, before, 40);
AT(httpdown_restart_options, on_restart, 48);
AT(httpdown_restart_options, user_data, 56);
AT(httpdown_restart_options, destroy, 64);
AT(httpdown_restart_options, ready_timeout_ms, 72);
AT(httpdown_restart_options, probation_ms, 76);
AT(httpdown_restart_options, max_predecessors, 80);
AT(httpdown_restart_options, flags, 84);
AT(httpdown_restart_options, pid_file, 88);

SIZE(httpdown_restarts, 32);
AT(httpdown_restarts, struct_size, 0);
AT(httpdown_restarts, state, 8);
AT(httpdown_restarts, successor_pid, 12);
AT(httpdown_restarts, generation, 16);
AT(httpdown_restarts, predecessor_count, 24);

// httpdown_status
VALUE(HTTPDOWN_STATUS_OK, 0);
VALUE(HTTPDOWN_STATUS_INVALID_ARGUMENT, 1);
VALUE(HTTPDOWN_STATUS_UNSUPPORTED, 2);
VALUE(HTTPDOWN_STATUS_ADDR_INVALID, 3);
VALUE(HTTPDOWN_STATUS_ADDR_IN_USE, 4);
VALUE(HTTPDOWN_STATUS_PERMISSION_DENIED, 5);
VALUE(HTTPDOWN_STATUS_IO, 6);
VALUE(HTTPDOWN_STATUS_TIMED_OUT, 7);
VALUE(HTTPDOWN_STATUS_STOPPED, 8);
VALUE(HTTPDOWN_STATUS_WOULD_DEADLOCK, 9);
VALUE(HTTPDOWN_STATUS_ALREADY_REPLIED, 10);
VALUE(HTTPDOWN_STATUS_OUT_OF_RESOURCES, 11);
VALUE(HTTPDOWN_STATUS_WOULD_BLOCK, 12);
VALUE(HTTPDOWN_STATUS_GONE, 13);
VALUE(HTTPDOWN_STATUS_KILLED, 14);
VALUE(HTTPDOWN_STATUS_FORKED, 15);
VALUE(HTTPDOWN_STATUS_TOO_LARGE, 16);
VALUE(HTTPDOWN_STATUS_NOT_FOUND, 17);
VALUE(HTTPDOWN_STATUS_BAD_BODY, 18);
VALUE(HTTPDOWN_STATUS_TLS, 19);
VALUE(HTTPDOWN_STATUS_TOO_SLOW, 20);
VALUE(HTTPDOWN_STATUS_RESTART_FAILED, 21);
VALUE(HTTPDOWN_STATUS_BUSY, 22);
VALUE(HTTPDOWN_STATUS_PANIC, 99);

// httpdown_phase_code
VALUE(HTTPDOWN_PHASE_SERVING, 0);
VALUE(HTTPDOWN_PHASE_LAME_DUCK, 1);
VALUE(HTTPDOWN_PHASE_QUIESCING, 2);
VALUE(HTTPDOWN_PHASE_DRAINING, 3);
VALUE(HTTPDOWN_PHASE_KILLING, 4);
VALUE(HTTPDOWN_PHASE_STOPPED, 5);

// httpdown_conn_state
VALUE(HTTPDOWN_CONN_NEW, 0);
VALUE(HTTPDOWN_CONN_ACTIVE, 1);
VALUE(HTTPDOWN_CONN_IDLE, 2);
VALUE(HTTPDOWN_CONN_HIJACKED, 3);
VALUE(HTTPDOWN_CONN_CLOSED, 4);
VALUE(HTTPDOWN_CONN_HANDSHAKING, 5);

// httpdown_dispatch
VALUE(HTTPDOWN_DISPATCH_POOL, 0);
VALUE(HTTPDOWN_DISPATCH_INLINE, 1);
VALUE(HTTPDOWN_DISPATCH_QUEUE, 2);

// httpdown_log_level
VALUE(HTTPDOWN_LOG_ERROR, 0);
VALUE(HTTPDOWN_LOG_WARNING, 1);
VALUE(HTTPDOWN_LOG_INFO, 2);

// httpdown_event_kind
VALUE(HTTPDOWN_EVENT_STAT, 1);
VALUE(HTTPDOWN_EVENT_CONN, 2);
VALUE(HTTPDOWN_EVENT_PHASE, 4);
VALUE(HTTPDOWN_EVENT_LOG, 8);
VALUE(HTTPDOWN_EVENT_DONE, 16);

// httpdown_request_end
VALUE(HTTPDOWN_END_SERVED, 0);
VALUE(HTTPDOWN_END_FAILED, 1);
VALUE(HTTPDOWN_END_GONE, 2);
VALUE(HTTPDOWN_END_TIMED_OUT, 3);
VALUE(HTTPDOWN_END_KILLED, 4);

// httpdown_log_format
VALUE(HTTPDOWN_LOG_COMMON, 0);
VALUE(HTTPDOWN_LOG_COMBINED, 1);
VALUE(HTTPDOWN_LOG_JSON, 2);

// httpdown_stat_kind
VALUE(HTTPDOWN_STAT_AVG, 0);
VALUE(HTTPDOWN_STAT_SUM, 1);
VALUE(HTTPDOWN_STAT_HISTOGRAM, 2);
VALUE(HTTPDOWN_STAT_TIME, 3);

// httpdown_tls_version
VALUE(HTTPDOWN_TLS_1_2, 12);
VALUE(HTTPDOWN_TLS_1_3, 13);

// httpdown_client_auth
VALUE(HTTPDOWN_CLIENT_AUTH_NONE, 0);
VALUE(HTTPDOWN_CLIENT_AUTH_OPTIONAL, 1);
VALUE(HTTPDOWN_CLIENT_AUTH_REQUIRED, 2);

// httpdown_ready_kind
VALUE(HTTPDOWN_READABLE, 1);
VALUE(HTTPDOWN_WRITABLE, 2);
VALUE(HTTPDOWN_GONE, 4);
VALUE(HTTPDOWN_DRAINING, 8);
VALUE(HTTPDOWN_NEW, 16);
VALUE(HTTPDOWN_OVERDUE, 32);

// httpdown_restart_state
VALUE(HTTPDOWN_RESTART_IDLE, 0);
VALUE(HTTPDOWN_RESTART_SUCCEEDING, 1);
VALUE(HTTPDOWN_RESTART_STARTING, 2);
VALUE(HTTPDOWN_RESTART_PROBATION, 3);
VALUE(HTTPDOWN_RESTART_HANDED_OVER, 4);

// httpdown_restart_flag
VALUE(HTTPDOWN_RESTART_DROP_UNCLAIMED, 1);
VALUE(HTTPDOWN_RESTART_KEEP_FDS, 2);
VALUE(HTTPDOWN_RESTART_PLAIN_STDERR, 4);

VALUE(HTTPDOWN_NOW, 4294967294);
VALUE(HTTPDOWN_FOREVER, 4294967295);
VALUE(HTTPDOWN_TO_END, 18446744073709551615u);

/* Functions that return an enum's number return an int: the enum must not be wider. */
SIZE(httpdown_status, sizeof(int));

static void on_request(httpdown_request *request, void *user_data) {
    (void)user_data;
    httpdown_reply_text(request, 200, "Hello, World!");
}

static int failed(const char *what) {
    fprintf(stderr, "abi: %s\n", what);
    return 1;
}

int main(void) {
    static const int statuses[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 99};
    for (size_t i = 0; i < sizeof statuses / sizeof *statuses; i++)
        if (strcmp(httpdown_status_string(statuses[i]), httpdown_status_string(-1)) == 0)
            return failed("a status has no text");
    if (strcmp(httpdown_version(), HTTPDOWN_VERSION) != 0) return failed("header and library differ in version");

    char error[256] = "";
    httpdown_options options;
    httpdown_options_init(&options, sizeof options);
    if (options.struct_size != sizeof options || options.lame_duck_quiet_ms != 0) return failed("httpdown_options_init");
    httpdown_tls tls;
    httpdown_tls_init(&tls, sizeof tls);
    if (tls.struct_size != sizeof tls || tls.more != NULL || tls.handshakes != 0) return failed("httpdown_tls_init");
    httpdown_restart_options restart;
    httpdown_restart_options_init(&restart, sizeof restart);
    if (restart.struct_size != sizeof restart || restart.flags != 0) return failed("httpdown_restart_options_init");
    options.addr = "127.0.0.1:0";
    options.handler = on_request;
    httpdown_server *server;
    if (httpdown_serve(&options, &server, error, sizeof error) != 0) return failed(error);
    httpdown_stop_report report;
    report.struct_size = sizeof report;
    int status = httpdown_stop(server);
    if (status == 0) status = httpdown_report(server, &report);
    httpdown_free(server);
    if (status != 0) return failed(httpdown_status_string(status));
    if (report.phase != HTTPDOWN_PHASE_STOPPED) return failed("not stopped");

    /* An older program, whose report ended where `conns_handshaking` begins. */
    if (httpdown_serve(&options, &server, error, sizeof error) != 0) return failed(error);
    report.struct_size = offsetof(httpdown_stop_report, conns_handshaking);
    report.conns_handshaking = 7;
    status = httpdown_report(server, &report);
    httpdown_free(server);
    if (status != 0 || report.conns_handshaking != 7) return failed("more was written than the report has");

    /* An older program, whose options ended where `pull_events` begins. */
    options.struct_size = offsetof(httpdown_options, pull_events);
    options.pull_events = 0xFFFFFFFF;
    if (httpdown_serve(&options, &server, error, sizeof error) != 0) return failed(error);
    httpdown_free(server);
    return 0;
}
