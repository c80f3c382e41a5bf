/* TLS. The program openssl makes the certificates, and is the client; without it, most tests are not run. */
#include "test.h"

#if HTTPDOWN_HAS_TLS

#define INVALID HTTPDOWN_STATUS_INVALID_ARGUMENT

/* ---- certificates ---- */

static char folder[] = "/tmp/httpdown-c-XXXXXX";

/* In the folder of the certificates. Few are needed at once. */
static const char *path(const char *name) {
    static _Thread_local char paths[16][128];
    static _Thread_local unsigned next;
    char *place = paths[next++ % 16];
    snprintf(place, sizeof paths[0], "%s/%s", folder, name);
    return place;
}

static bool run(const char *command) {
    char line[1024];
    snprintf(line, sizeof line, "(F=%s; %s) >/dev/null 2>&1", folder, command);
    return system(line) == 0;
}

/* Those of certs.sh; a second certificate with a name of its own; and some that are no good. */
static bool make_certificates(void) {
    return run("examples/certs.sh $F") &&
           run("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=other "
               "-addext subjectAltName=DNS:other.example.com -keyout $F/other-key.pem -out $F/other.pem") &&
           run("openssl pkey -in $F/server-key.pem -aes128 -passout pass:secret -out $F/encrypted.pem") &&
           run("openssl x509 -in $F/client.pem -outform der -out $F/client.der") &&
           run("openssl x509 -in $F/client.pem -noout -fingerprint -sha256 | sed 's/.*=//; s/://g' >$F/fingerprint") &&
           run("cat $F/server.pem $F/server-key.pem >$F/both.pem; : >$F/empty.pem; echo nonsense >$F/nonsense.pem") &&
           run("cp $F/server-key.pem $F/hidden.pem; chmod 0 $F/hidden.pem");
}

/* A whole file, NUL-terminated; of one test, which need not free it. */
static httpdown_bytes contents(const char *name) {
    static _Thread_local char texts[4][8192];
    static _Thread_local unsigned next;
    char *text = texts[next++ % 4];
    FILE *file = fopen(path(name), "rb");
    CHECK(file != NULL);
    size_t len = fread(text, 1, sizeof texts[0] - 1, file);
    CHECK(len < sizeof texts[0] - 1);
    fclose(file);
    text[len] = 0;
    return (httpdown_bytes){text, len};
}

static httpdown_tls settings(const char *cert, const char *key) {
    return (httpdown_tls){
        .struct_size = sizeof(httpdown_tls),
        .cert_file = path(cert),
        .key_file = path(key),
        .handshake_timeout_ms = PATIENCE_MS, /* where everything is slower */
    };
}

static httpdown_tls good_settings(void) {
    return settings("server.pem", "server-key.pem");
}

/* ---- a client ---- */

typedef struct {
    pid_t pid;
    int fd; /* what is written there is sent by TLS */
} caller;

static caller call_port(int port, const char *flags) {
    char command[1024];
    int ends[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    const char *format = "exec openssl s_client -quiet -verify_return_error -connect 127.0.0.1:%d %s";
    snprintf(command, sizeof command, format, port, flags);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        int nothing = open("/dev/null", O_WRONLY);
        if (dup2(ends[1], 0) == 0 && dup2(ends[1], 1) == 1 && dup2(nothing, 2) == 2)
            execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(127);
    }
    close(ends[1]);
    struct timeval limit = {.tv_sec = PATIENCE_S};
    setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    return (caller){pid, ends[0]};
}

/* One that expects the certificate that `issuer` has issued. */
static caller call(const httpdown_server *server, const char *issuer, const char *flags) {
    char all[512];
    snprintf(all, sizeof all, "-CAfile %s %s", path(issuer), flags);
    return call_port(port_of(server), all);
}

static void hang_up(caller *client) {
    close(client->fd);
    kill(client->pid, SIGTERM);
    CHECK(waitpid(client->pid, NULL, 0) == client->pid);
}

/* Whether a client with these flags gets an answer; then its body is in `body`. */
static bool asks(const httpdown_server *server, const char *issuer, const char *flags, char *body, size_t size) {
    caller client = call(server, issuer, flags);
    /* Not `put`: the client may have left. */
    bool is_sent = send(client.fd, GET_CLOSE("/"), strlen(GET_CLOSE("/")), MSG_NOSIGNAL) > 0;
    response r = {0};
    if (is_sent) r = take(client.fd);
    bool is_whole = r.status == 200 && r.whole;
    if (body != NULL) snprintf(body, size, "%s", is_whole ? r.body : "");
    done(&r);
    hang_up(&client);
    return is_whole;
}

static bool accepts(const httpdown_server *server, const char *issuer) {
    return asks(server, issuer, "", NULL, 0);
}

/* ---- what a handler is told ---- */

static const char *shown(httpdown_bytes bytes) {
    static _Thread_local char texts[8][128];
    static _Thread_local unsigned next;
    char *text = texts[next++ % 8];
    if (bytes.data == NULL) return "-";
    snprintf(text, sizeof texts[0], "'%.*s'", (int)bytes.len, bytes.data);
    for (char *at = text; *at != 0; at++)
        if (*at == '\n') *at = '|';
    return text;
}

static void describe(const httpdown_tls_info *info, char *text, size_t size) {
    int len = snprintf(text, size, "%d %s %s name %s alpn %s client %s %s ", info->version,
                       info->resumed ? "resumed" : "full", shown(info->cipher_suite), shown(info->server_name),
                       shown(info->alpn), shown(info->client_subject), shown(info->client_names));
    for (size_t i = 0; i < sizeof info->client_fingerprint && len > 0 && (size_t)len < size; i++)
        len += snprintf(text + len, size - (size_t)len, "%02X", info->client_fingerprint[i]);
}

/* Answers with what the handshake has agreed on. */
static void tell_tls(httpdown_request *request, void *user_data) {
    (void)user_data;
    httpdown_tls_info info = {.struct_size = sizeof info};
    char text[512];
    CHECK(httpdown_bytes_equal(httpdown_request_scheme(request), "https"));
    EQUAL(httpdown_request_tls(request, &info), 0);
    EQUAL(info.struct_size, sizeof info);
    describe(&info, text, sizeof text);
    if (info.client_certificate.data != NULL) {
        httpdown_bytes der = contents("client.der");
        CHECK(info.client_certificate.len == der.len && memcmp(info.client_certificate.data, der.data, der.len) == 0);
    }
    EQUAL(httpdown_reply_text(request, 200, text), 0);
}

static httpdown_server *serve_tls(fixture *f, httpdown_handler_fn handler, const httpdown_tls *tls) {
    httpdown_options options = options_for(f, handler);
    options.addr = "127.0.0.1:0"; /* openssl does not connect to abstract sockets */
    options.tls = tls;
    return start(&options);
}

#define NO_CLIENT "client - - " ZEROES_16 ZEROES_16
#define ZEROES_16 "00000000000000000000000000000000"

static void a_handler_learns_what_was_agreed(void) {
    fixture *f = new_fixture();
    httpdown_tls tls = good_settings();
    httpdown_server *server = serve_tls(f, tell_tls, &tls);
    const struct {
        const char *flags, *told;
    } cases[] = {
        {"-tls1_3 -servername LocalHost -alpn h2,http/1.1 -ciphersuites TLS_AES_256_GCM_SHA384",
         "13 full 'TLS13_AES_256_GCM_SHA384' name 'localhost' alpn 'http/1.1' " NO_CLIENT},
        {"-tls1_3 -noservername -ciphersuites TLS_CHACHA20_POLY1305_SHA256",
         "13 full 'TLS13_CHACHA20_POLY1305_SHA256' name - alpn - " NO_CLIENT},
        {"-tls1_2 -servername localhost -cipher ECDHE-ECDSA-AES128-GCM-SHA256",
         "12 full 'TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256' name 'localhost' alpn - " NO_CLIENT},
    };
    char told[512];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        CHECK(asks(server, "ca.pem", cases[i].flags, told, sizeof told));
        if (strcmp(told, cases[i].told) != 0) fprintf(stderr, "%s: %s\n", cases[i].flags, told);
        CHECK(strcmp(told, cases[i].told) == 0);
    }
    /* When a stop closes a connection and the client resets it, nobody can know whether the answer has arrived. */
    UNTIL(report_of(server).conns_open == 0);
    httpdown_stop_report report = end_server(f, 0);
    EQUAL(report.served, 3);
    EQUAL(report.connections, 3);
    EQUAL(report.conns_tls_failed, 0);
    free_fixture(f);
}

static void resumed_sessions_are_told_and_outlive_their_server(void) {
    char first[48], second[48], both[96];
    memset(first, 'a', sizeof first);
    memset(second, 'b', sizeof second);
    memcpy(both, second, sizeof second);
    memcpy(both + sizeof second, first, sizeof first);
    /* Servers, one after the other. */
    const struct {
        httpdown_bytes keys;
        const char *flag, *told;
    } servers[] = {
        {{first, sizeof first}, "-sess_out", " full "},
        {{first, sizeof first}, "-sess_in", " resumed "},
        {{second, sizeof second}, "-sess_in", " full "},
        {{both, sizeof both}, "-sess_in", " resumed "},
    };
    const char *const versions[] = {"-tls1_2", "-tls1_3"};
    for (int v = 0; v < 2; v++) {
        for (int i = 0; i < 4; i++) {
            char flags[256], told[512];
            fixture *f = new_fixture();
            httpdown_tls tls = good_settings();
            tls.ticket_keys = servers[i].keys;
            httpdown_server *server = serve_tls(f, tell_tls, &tls);
            snprintf(flags, sizeof flags, "%s %s %s", versions[v], servers[i].flag, path("session"));
            CHECK(asks(server, "ca.pem", flags, told, sizeof told));
            if (strstr(told, servers[i].told) == NULL) fprintf(stderr, "%s, server %d: %s\n", versions[v], i, told);
            CHECK(strstr(told, servers[i].told) != NULL);
            end_server(f, 0);
            free_fixture(f);
        }
    }
}

static void clients_have_certificates(void) {
    char told[512], expected[256], own[400];
    snprintf(own, sizeof own, "-cert %s -key %s", path("client.pem"), path("client-key.pem"));
    snprintf(expected, sizeof expected, "client 'CN=alice' 'alice@example.com' %.64s", contents("fingerprint").data);
    for (int in_memory = 0; in_memory < 2; in_memory++) {
        fixture *f = new_fixture();
        httpdown_tls tls = good_settings();
        tls.client_auth = HTTPDOWN_CLIENT_AUTH_REQUIRED;
        tls.min_version = HTTPDOWN_TLS_1_3;
        if (in_memory) tls.ca = contents("ca.pem");
        else tls.ca_file = path("ca.pem");
        httpdown_server *server = serve_tls(f, tell_tls, &tls);
        CHECK(asks(server, "ca.pem", own, told, sizeof told));
        CHECK(strstr(told, expected) != NULL);
        CHECK(!accepts(server, "ca.pem"));
        snprintf(own + strlen(own), sizeof own - strlen(own), " -tls1_2");
        CHECK(!asks(server, "ca.pem", own, NULL, 0));
        own[strlen(own) - strlen(" -tls1_2")] = 0;
        /* Now they may come without. */
        tls.client_auth = HTTPDOWN_CLIENT_AUTH_OPTIONAL;
        EQUAL(httpdown_tls_reload(server, &tls, NULL, 0), 0);
        CHECK(asks(server, "ca.pem", "", told, sizeof told));
        CHECK(strstr(told, NO_CLIENT) != NULL);
        CHECK(asks(server, "ca.pem", own, told, sizeof told));
        CHECK(strstr(told, expected) != NULL);
        UNTIL(report_of(server).conns_open == 0);
        httpdown_stop_report report = end_server(f, 0);
        EQUAL(report.conns_tls_failed, 2);
        EQUAL(report.served, 3);
        free_fixture(f);
    }
}

static void no_tls(httpdown_request *request, void *user_data) {
    (void)user_data;
    httpdown_tls_info info, untouched;
    memset(&info, 0x55, sizeof info);
    info.struct_size = sizeof info;
    untouched = info;
    EQUAL(httpdown_request_tls(request, &info), HTTPDOWN_STATUS_NOT_FOUND);
    CHECK(memcmp(&info, &untouched, sizeof info) == 0);
    info.struct_size = 3;
    EQUAL(httpdown_request_tls(request, &info), INVALID);
    EQUAL(httpdown_request_tls(request, NULL), INVALID);
    CHECK(httpdown_bytes_equal(httpdown_request_scheme(request), "http"));
    httpdown_reply_text(request, 200, "no TLS");
}

static void a_plain_connection_has_nothing_to_tell(void) {
    fixture *f = new_fixture();
    httpdown_server *server = serve_tls(f, no_tls, NULL);
    get(server, 200, "no TLS");
    end_server(f, 0);
    free_fixture(f);
}

/* Of each size that the struct may have. */
static void sized(httpdown_request *request, void *user_data) {
    (void)user_data;
    union {
        httpdown_tls_info info;
        unsigned char bytes[8192];
    } u;
    httpdown_tls_info whole = {.struct_size = sizeof whole};
    EQUAL(httpdown_request_tls(request, &whole), 0);
    const size_t absurd[] = {0, 1, 8, offsetof(httpdown_tls_info, cipher_suite) - 1, 4097, 8192, (size_t)-1};
    for (size_t i = 0; i < sizeof absurd / sizeof *absurd; i++) {
        memset(&u, 0x55, sizeof u);
        u.info.struct_size = absurd[i];
        EQUAL(httpdown_request_tls(request, &u.info), INVALID);
        CHECK(strstr(httpdown_last_error(), "struct_size") != NULL);
        for (size_t at = sizeof(size_t); at < sizeof u; at++) EQUAL(u.bytes[at], 0x55);
    }
    const size_t fine[] = {offsetof(httpdown_tls_info, cipher_suite), offsetof(httpdown_tls_info, client_certificate),
                           sizeof u.info, sizeof u.info + 24, 4096};
    for (size_t i = 0; i < sizeof fine / sizeof *fine; i++) {
        size_t known = fine[i] < sizeof u.info ? fine[i] : sizeof u.info;
        memset(&u, 0x55, sizeof u);
        whole.struct_size = u.info.struct_size = fine[i];
        EQUAL(httpdown_request_tls(request, &u.info), 0);
        CHECK(memcmp(&u, &whole, known) == 0);
        for (size_t at = known; at < sizeof u; at++) EQUAL(u.bytes[at], at < fine[i] ? 0 : 0x55);
    }
    EQUAL(httpdown_request_tls(request, NULL), INVALID);
    CHECK(strcmp(httpdown_last_error(), "info is NULL") == 0);
    EQUAL(httpdown_request_tls(NULL, &whole), INVALID);
    httpdown_reply_text(request, 200, "sized");
}

static void the_info_may_be_older_or_newer(void) {
    fixture *f = new_fixture();
    httpdown_tls tls = good_settings();
    httpdown_server *server = serve_tls(f, sized, &tls);
    char body[16];
    CHECK(asks(server, "ca.pem", "", body, sizeof body) && strcmp(body, "sized") == 0);
    end_server(f, 0);
    free_fixture(f);
}

static void keep(httpdown_request *request, void *user_data) {
    fixture *f = user_data;
    httpdown_tls_info info = {.struct_size = sizeof info};
    if (httpdown_bytes_equal(httpdown_request_path(request), "/keep")) {
        f->extra = request;
        EQUAL(httpdown_request_retain(request), 0);
    }
    EQUAL(httpdown_reply_text(request, 200, "kept"), 0);
    EQUAL(httpdown_request_tls(request, &info), 0); /* the handler still reads */
    EQUAL(info.version, HTTPDOWN_TLS_1_3);
    gate_add(&f->left);
}

static void what_is_told_lives_as_long_as_the_request(void) {
    fixture *f = new_fixture();
    httpdown_tls tls = good_settings();
    httpdown_server *server = serve_tls(f, keep, &tls);
    caller client = call(server, "ca.pem", "-servername localhost");
    put(client.fd, GET("/"));
    expect(client.fd, 200, "kept");
    put(client.fd, GET_CLOSE("/keep"));
    expect(client.fd, 200, "kept");
    hang_up(&client);
    gate_wait(&f->left, 2);
    httpdown_request *kept = f->extra;
    httpdown_tls_info info = {.struct_size = sizeof info};
    EQUAL(httpdown_request_tls(kept, &info), 0);
    EQUAL(httpdown_stop(server), 0);
    CHECK(httpdown_bytes_equal(info.server_name, "localhost"));
    EQUAL(httpdown_request_tls(kept, &info), 0);
    CHECK(httpdown_bytes_equal(info.server_name, "localhost"));
    EQUAL(httpdown_request_release(kept), 0);
    EQUAL(httpdown_request_tls(kept, &info), HTTPDOWN_STATUS_ALREADY_REPLIED);
    end_server(f, 0);
    free_fixture(f);
}

/* ---- certificates that are replaced ---- */

static void certificates_are_replaced_for_new_connections(void) {
    fixture *f = new_fixture();
    httpdown_tls tls = good_settings(), other = settings("other.pem", "other-key.pem");
    httpdown_server *server = serve_tls(f, tell_tls, &tls);
    caller client = call(server, "ca.pem", "");
    put(client.fd, GET("/"));
    expect(client.fd, 200, NULL);
    char error[64] = "unset";
    EQUAL(httpdown_tls_reload(server, &other, error, sizeof error), 0);
    CHECK(error[0] == 0);
    CHECK(accepts(server, "other.pem") && !accepts(server, "ca.pem"));
    /* From memory, with another one for its name. The strings may go when the call has returned. */
    httpdown_certificate more = {.cert = contents("other.pem"), .key = contents("other-key.pem")};
    tls = (httpdown_tls){.struct_size = sizeof tls, .cert = contents("both.pem"), .key = contents("both.pem")};
    tls.more = &more;
    tls.more_count = 1;
    EQUAL(httpdown_tls_reload(server, &tls, NULL, 0), 0);
    memset((char *)tls.cert.data, 0, tls.cert.len);
    memset((char *)more.key.data, 0, more.key.len);
    CHECK(accepts(server, "ca.pem"));
    CHECK(asks(server, "ca.pem", "-servername nobody.example.com", NULL, 0));
    CHECK(asks(server, "other.pem", "-servername other.example.com", NULL, 0));
    CHECK(!asks(server, "ca.pem", "-servername other.example.com", NULL, 0));
    /* The first connection goes on. */
    put(client.fd, GET_CLOSE("/"));
    expect(client.fd, 200, NULL);
    hang_up(&client);
    httpdown_stop_report report = end_server(f, 0);
    EQUAL(report.conns_tls_failed, 2);
    free_fixture(f);
}

static void put_live(const char *cert, const char *key) {
    char command[128];
    snprintf(command, sizeof command, "cp $F/%s $F/live.pem; cp $F/%s $F/live-key.pem", cert, key);
    CHECK(run(command));
}

static void files_are_read_again(void) {
    char error[256] = "";
    put_live("server.pem", "server-key.pem");
    fixture *f = new_fixture();
    httpdown_tls tls = settings("live.pem", "live-key.pem");
    tls.cert_file = "live.pem";
    tls.key_file = "live-key.pem";
    CHECK(chdir(folder) == 0);
    httpdown_server *server = serve_tls(f, hello, &tls);
    CHECK(chdir("/") == 0); /* as a daemon does */
    put_live("other.pem", "other-key.pem");
    CHECK(accepts(server, "ca.pem"));
    EQUAL(httpdown_tls_reload(server, NULL, error, sizeof error), 0);
    CHECK(error[0] == 0 && accepts(server, "other.pem") && !accepts(server, "ca.pem"));
    put_live("server.pem", "other-key.pem");
    EQUAL(httpdown_tls_reload(server, NULL, error, sizeof error), HTTPDOWN_STATUS_TLS);
    CHECK(strstr(error, "live-key.pem") != NULL && strstr(error, "does not fit") != NULL);
    CHECK(accepts(server, "other.pem"));
    /* What is in memory cannot be read again. */
    tls = (httpdown_tls){.struct_size = sizeof tls, .cert = contents("both.pem"), .key = contents("both.pem")};
    EQUAL(httpdown_tls_reload(server, &tls, error, sizeof error), 0);
    EQUAL(httpdown_tls_reload(server, NULL, error, sizeof error), HTTPDOWN_STATUS_UNSUPPORTED);
    CHECK(strstr(error, "from files") != NULL && accepts(server, "ca.pem"));
    end_server(f, 0);
    free_fixture(f);

    const httpdown_tls *without_files[] = {NULL, &tls};
    for (int i = 0; i < 2; i++) {
        f = new_fixture();
        httpdown_options options = options_for(f, hello);
        options.tls = without_files[i];
        options.reload_on_hup = 1;
        EQUAL(httpdown_serve(&options, &server, error, sizeof error), INVALID);
        CHECK(strstr(error, "reload_on_hup is set, but nothing of tls is from a file") != NULL);
        free(f);
    }
}

/* Takes another certificate; the next is no good. */
static void reload(httpdown_request *request, void *user_data) {
    (void)user_data;
    char error[256];
    httpdown_tls tls = settings("other.pem", "other-key.pem");
    EQUAL(httpdown_tls_reload(httpdown_request_server(request), &tls, error, sizeof error), 0);
    tls.key_file = path("server-key.pem");
    EQUAL(httpdown_tls_reload(httpdown_request_server(request), &tls, error, sizeof error), HTTPDOWN_STATUS_TLS);
    CHECK(strcmp(httpdown_last_error(), error) == 0);
    httpdown_reply_text(request, 200, "reloaded");
}

static void a_handler_may_replace_them(void) {
    const int dispatch[] = {HTTPDOWN_DISPATCH_POOL, HTTPDOWN_DISPATCH_INLINE};
    for (int i = 0; i < 2; i++) {
        fixture *f = new_fixture();
        httpdown_tls tls = good_settings();
        httpdown_options options = options_for(f, reload);
        options.addr = "127.0.0.1:0";
        options.tls = &tls;
        options.dispatch = dispatch[i];
        httpdown_server *server = start(&options);
        CHECK(accepts(server, "ca.pem"));
        CHECK(accepts(server, "other.pem") && !accepts(server, "ca.pem"));
        end_server(f, 0);
        free_fixture(f);
    }
}

static void only_a_server_with_tls_can_be_reloaded(void) {
    char error[256];
    fixture *f = new_fixture();
    httpdown_tls tls = good_settings();
    httpdown_server *server = serve_tls(f, hello, NULL);
    EQUAL(httpdown_tls_reload(server, &tls, error, sizeof error), HTTPDOWN_STATUS_UNSUPPORTED);
    CHECK(strcmp(error, "the server does not speak TLS") == 0);
    EQUAL(httpdown_tls_reload(server, NULL, error, sizeof error), HTTPDOWN_STATUS_UNSUPPORTED);
    CHECK(strcmp(error, "the server does not speak TLS") == 0);
    end_server(f, 0);
    free_fixture(f);

    f = new_fixture();
    server = serve_tls(f, hello, &tls);
    EQUAL(httpdown_tls_reload(NULL, &tls, error, sizeof error), INVALID);
    CHECK(strstr(error, "server is NULL") != NULL);
    EQUAL(httpdown_tls_reload(NULL, NULL, NULL, 0), INVALID);
    EQUAL(httpdown_tls_reload(server, &tls, NULL, 100), 0);
    int told[2], status = -1;
    CHECK(pipe(told) == 0);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        status = httpdown_tls_reload(server, &tls, error, sizeof error);
        CHECK(write(told[1], &status, sizeof status) == sizeof status);
        /* It is killed: when it ends by itself, valgrind says that it has lost what the parent's threads have. */
        for (;;) pause();
    }
    CHECK(read(told[0], &status, sizeof status) == sizeof status);
    EQUAL(status, HTTPDOWN_STATUS_FORKED);
    kill(pid, SIGKILL);
    CHECK(waitpid(pid, NULL, 0) == pid);
    close(told[0]);
    close(told[1]);
    /* It still has its settings when it has stopped. */
    EQUAL(httpdown_stop(server), 0);
    EQUAL(httpdown_tls_reload(server, &tls, error, sizeof error), 0);
    tls.key_file = path("client-key.pem");
    EQUAL(httpdown_tls_reload(server, &tls, error, sizeof error), HTTPDOWN_STATUS_TLS);
    end_server(f, 0);
    free_fixture(f);
}

/* ---- what cannot be used ---- */

static httpdown_server *old; /* What every one of them is also given to. */

/* Neither a new server nor one that runs takes these settings. Both say why. */
static void refuse(int line, const httpdown_tls *tls, int expected, const char *why, const char *too) {
    char error[512], again[512];
    fixture *f = new_fixture();
    httpdown_options options = options_for(f, hello);
    options.addr = "127.0.0.1:0";
    options.tls = tls;
    httpdown_server *none = (httpdown_server *)&none;
    int status = httpdown_serve(&options, &none, error, sizeof error);
    if (status != expected || strstr(error, why) == NULL || strstr(error, too) == NULL)
        fprintf(stderr, "line %d: %d: %s\n", line, status, error);
    EQUAL(status, expected);
    CHECK(none == NULL && strstr(error, why) != NULL && strstr(error, too) != NULL);
    CHECK(strcmp(httpdown_last_error(), error) == 0);
    EQUAL(gate_value(&f->destroyed), 1);
    free(f);
    EQUAL(httpdown_tls_reload(old, tls, again, sizeof again), expected);
    CHECK(strcmp(again, error) == 0);
}

/* Good settings but for one field. */
#define REFUSED(field, wrong, expected, why, too) \
    do { \
        httpdown_tls bad_ = good_settings(); \
        bad_.field = wrong; \
        refuse(__LINE__, &bad_, expected, why, too); \
    } while (0)
#define BYTES(text, length) ((httpdown_bytes){text, length})
#define TLS HTTPDOWN_STATUS_TLS

static fixture *start_old(void) {
    fixture *f = new_fixture();
    httpdown_tls tls = good_settings();
    old = serve_tls(f, hello, &tls);
    return f;
}

/* After all that has failed, it has what it had. */
static void end_old(fixture *f) {
    CHECK(accepts(old, "ca.pem"));
    end_server(f, 0);
    free_fixture(f);
}

static void bad_certificates_and_keys(void) {
    httpdown_tls tls = {.struct_size = sizeof tls};
    refuse(__LINE__, &tls, INVALID, "neither tls.cert_file nor tls.cert is set", "");
    REFUSED(cert_file, NULL, INVALID, "neither tls.cert_file nor tls.cert is set", "");
    REFUSED(key_file, NULL, INVALID, "neither tls.key_file nor tls.key is set", "");
    REFUSED(cert, BYTES("both", 4), INVALID, "both tls.cert_file and tls.cert are set", "");
    REFUSED(key, BYTES("both", 4), INVALID, "both tls.key_file and tls.key are set", "");
    REFUSED(cert, BYTES(NULL, 5), INVALID, "tls.cert is NULL", "");
    REFUSED(key, BYTES(NULL, 5), INVALID, "tls.key is NULL", "");
    REFUSED(cert, BYTES("x", (size_t)-1), INVALID, "tls.cert", "absurd length");
    REFUSED(cert_file, "\xff", INVALID, "tls.cert_file is not UTF-8", "");
    REFUSED(key_file, "\xc3", INVALID, "tls.key_file is not UTF-8", "");
    REFUSED(key_file, contents("server-key.pem").data, INVALID, "tls.key_file is no path, but PEM", "");
    REFUSED(cert_file, "", HTTPDOWN_STATUS_IO, "cannot read the certificate chain \"\"", "");
    REFUSED(cert_file, path("absent.pem"), HTTPDOWN_STATUS_IO, "cannot read the certificate chain", "/absent.pem");
    REFUSED(key_file, path("absent.pem"), HTTPDOWN_STATUS_IO, "cannot read the private key", "/absent.pem");
    REFUSED(cert_file, folder, HTTPDOWN_STATUS_IO, "cannot read the certificate chain", folder);
    REFUSED(cert_file, path("empty.pem"), TLS, "is empty", "/empty.pem");
    REFUSED(key_file, path("empty.pem"), TLS, "is empty", "/empty.pem");
    REFUSED(cert_file, path("nonsense.pem"), TLS, "contains no certificate", "/nonsense.pem");
    REFUSED(key_file, path("nonsense.pem"), TLS, "contains no private key", "/nonsense.pem");
    REFUSED(key_file, path("server.pem"), TLS, "contains no private key", "/server.pem");
    REFUSED(key_file, path("encrypted.pem"), TLS, "is encrypted", "/encrypted.pem");
    REFUSED(key_file, path("client-key.pem"), TLS, "does not fit certificate 1 (CN=localhost)", "/client-key.pem");
    if (geteuid() != 0) /* who may read all */
        REFUSED(key_file, path("hidden.pem"), HTTPDOWN_STATUS_PERMISSION_DENIED, "cannot read", "/hidden.pem");
    tls.cert = contents("server.pem");
    tls.key = BYTES("\n", 1);
    refuse(__LINE__, &tls, TLS, "the private key is empty", "");
    tls.key = contents("client-key.pem");
    refuse(__LINE__, &tls, TLS, "does not fit certificate 1 (CN=localhost)", "");
    tls.key.len /= 2;
    refuse(__LINE__, &tls, TLS, "the private key is malformed", "");
    tls.key = contents("server-key.pem");
    tls.cert = BYTES("\0\0\0", 3);
    refuse(__LINE__, &tls, TLS, "the certificate chain contains no certificate", "");
    /* One in a file, one in memory. */
    tls.cert = BYTES(NULL, 0);
    tls.cert_file = path("absent.pem");
    refuse(__LINE__, &tls, HTTPDOWN_STATUS_IO, "/absent.pem", "");
}

static void bad_lists_of_more(void) {
    httpdown_certificate more[2] = {{.cert_file = path("other.pem"), .key_file = path("other-key.pem")}};
    REFUSED(more_count, 1, INVALID, "tls.more is NULL", "");
    httpdown_tls tls = good_settings();
    tls.more = more;
    tls.more_count = 2;
    refuse(__LINE__, &tls, INVALID, "neither tls.more[1].cert_file nor tls.more[1].cert is set", "");
    more[1].cert_file = path("other.pem");
    refuse(__LINE__, &tls, INVALID, "neither tls.more[1].key_file nor tls.more[1].key is set", "");
    more[1].key_file = path("encrypted.pem");
    refuse(__LINE__, &tls, TLS, "is encrypted", "/encrypted.pem");
    more[1].key_file = "\xff";
    refuse(__LINE__, &tls, INVALID, "tls.more[1].key_file is not UTF-8", "");
    tls.more_count = (size_t)-1;
    refuse(__LINE__, &tls, INVALID, "tls.more_count is ", "");
    tls.more_count = 65537;
    refuse(__LINE__, &tls, INVALID, "tls.more_count is 65537", "");
}

static void bad_checks_of_clients(void) {
    REFUSED(client_auth, HTTPDOWN_CLIENT_AUTH_OPTIONAL, INVALID, "neither tls.ca_file nor tls.ca", "");
    REFUSED(client_auth, HTTPDOWN_CLIENT_AUTH_REQUIRED, INVALID, "neither tls.ca_file nor tls.ca", "");
    REFUSED(client_auth, 3, HTTPDOWN_STATUS_UNSUPPORTED, "tls.client_auth 3 is not known", "");
    REFUSED(client_auth, -1, HTTPDOWN_STATUS_UNSUPPORTED, "tls.client_auth -1 is not known", "");
    REFUSED(ca_file, path("ca.pem"), INVALID, "tls.client_auth is not", "");
    REFUSED(crl, BYTES("x", 1), INVALID, "tls.client_auth is not", "");
    httpdown_tls tls = good_settings();
    tls.client_auth = HTTPDOWN_CLIENT_AUTH_REQUIRED;
    tls.ca = BYTES(NULL, 1);
    refuse(__LINE__, &tls, INVALID, "tls.ca is NULL", "");
    tls.ca = BYTES(" ", 1);
    refuse(__LINE__, &tls, TLS, "the CA bundle is empty", "");
    tls.ca_file = path("ca.pem");
    refuse(__LINE__, &tls, INVALID, "both tls.ca_file and tls.ca are set", "");
    tls.ca = BYTES(NULL, 0);
    tls.ca_file = path("absent.pem");
    refuse(__LINE__, &tls, HTTPDOWN_STATUS_IO, "/absent.pem", "");
    tls.ca_file = path("server-key.pem");
    refuse(__LINE__, &tls, TLS, "contains no certificate", "/server-key.pem");
    tls.ca_file = path("ca.pem");
    tls.crl_file = path("ca.pem");
    refuse(__LINE__, &tls, TLS, "contains no certificate revocation list", "/ca.pem");
    tls.crl = BYTES("x", 1);
    refuse(__LINE__, &tls, INVALID, "both tls.crl_file and tls.crl are set", "");
}

static void other_bad_settings(void) {
    char keys[17 * 48];
    for (size_t i = 0; i < sizeof keys; i++) keys[i] = (char)(i / 48);
    const int versions[] = {-1, 1, 11, 14, 0x0303};
    for (size_t i = 0; i < sizeof versions / sizeof *versions; i++)
        REFUSED(min_version, versions[i], HTTPDOWN_STATUS_UNSUPPORTED, "tls.min_version", "is not known");
    const size_t lengths[] = {1, 32, 47, 49, 95, 97};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
        REFUSED(ticket_keys, BYTES(keys, lengths[i]), INVALID, "tls.ticket_keys has ", "each key has 48");
    REFUSED(ticket_keys, BYTES(NULL, 48), INVALID, "tls.ticket_keys is NULL", "");
    REFUSED(ticket_keys, BYTES(keys, sizeof keys), INVALID, "1 to 16 ticket keys, not 17", "");
    keys[48] = 0;
    memset(keys + 48, 0, 16);
    REFUSED(ticket_keys, BYTES(keys, 96), INVALID, "ticket keys 1 and 2 have the same name", "");
    /* A reload leaves the limits as they are. */
    httpdown_tls tls = good_settings();
    tls.handshake_timeout_ms = HTTPDOWN_NOW;
    httpdown_options options = options_for(NULL, hello);
    options.addr = "127.0.0.1:0";
    options.tls = &tls;
    options.destroy = NULL;
    httpdown_server *none;
    char error[256];
    EQUAL(httpdown_serve(&options, &none, error, sizeof error), INVALID);
    CHECK(strstr(error, "handshake_timeout is 0") != NULL);
    EQUAL(httpdown_tls_reload(old, &tls, error, sizeof error), 0);
}

/* Together, because the first server with TLS takes seconds under valgrind. */
static void settings_that_cannot_be_used_are_refused(void) {
    fixture *f = start_old();
    bad_certificates_and_keys();
    bad_lists_of_more();
    bad_checks_of_clients();
    other_bad_settings();
    end_old(f);
}

static void settings_may_be_older_or_newer(void) {
    union {
        httpdown_tls tls;
        unsigned char bytes[8192];
    } u;
    fixture *f = start_old();
    const size_t absurd[] = {0, 1, 8, offsetof(httpdown_tls, cert) - 1, 4097, 8192, (size_t)-1};
    for (size_t i = 0; i < sizeof absurd / sizeof *absurd; i++) {
        memset(&u, 0, sizeof u);
        u.tls = good_settings();
        u.tls.struct_size = absurd[i];
        refuse(__LINE__, &u.tls, INVALID, "tls: struct_size is ", "sizeof the struct");
    }
    /* Older: what it does not have is the default. */
    memset(&u, 0x5a, sizeof u);
    u.tls.cert_file = path("server.pem");
    u.tls.key_file = path("server-key.pem");
    u.tls.struct_size = offsetof(httpdown_tls, cert);
    EQUAL(httpdown_tls_reload(old, &u.tls, NULL, 0), 0);
    /* Newer: fine, if what is not known is zero. */
    memset(&u, 0, sizeof u);
    u.tls = good_settings();
    u.tls.struct_size = sizeof u.tls + 24;
    EQUAL(httpdown_tls_reload(old, &u.tls, NULL, 0), 0);
    u.bytes[sizeof u.tls + 23] = 1;
    refuse(__LINE__, &u.tls, HTTPDOWN_STATUS_UNSUPPORTED, "tls: something is set that this version", "does not know");
    u.tls.struct_size--;
    EQUAL(httpdown_tls_reload(old, &u.tls, NULL, 0), 0);
    end_old(f);
}

static void init_sets_all(void) {
    union {
        httpdown_tls tls;
        unsigned char bytes[8192];
    } u;
    memset(&u, 0x5a, sizeof u);
    httpdown_tls_init(NULL, sizeof u.tls);
    httpdown_tls_init(&u.tls, 0);
    httpdown_tls_init(&u.tls, 4);
    httpdown_tls_init(&u.tls, 5000);
    httpdown_tls_init(&u.tls, (size_t)-1);
    for (size_t i = 0; i < sizeof u; i++) EQUAL(u.bytes[i], 0x5a);
    httpdown_tls_init(&u.tls, sizeof u.tls + 24);
    EQUAL(u.tls.struct_size, sizeof u.tls + 24);
    for (size_t i = sizeof(size_t); i < sizeof u; i++) EQUAL(u.bytes[i], i < sizeof u.tls + 24 ? 0 : 0x5a);
    httpdown_tls_init(&u.tls, sizeof u.tls);
    u.tls.cert_file = path("server.pem");
    u.tls.key_file = path("server-key.pem");
    fixture *f = new_fixture();
    serve_tls(f, hello, &u.tls);
    end_server(f, 0);
    free_fixture(f);
}

static void errors_are_cut_to_what_fits(void) {
    fixture *f = start_old();
    char whole[512], cut[512];
    httpdown_tls tls = good_settings();
    tls.cert_file = path("\xe2\x82\xac\xf0\x9f\x98\x80.pem");
    EQUAL(httpdown_tls_reload(old, &tls, whole, sizeof whole), HTTPDOWN_STATUS_IO);
    CHECK(strstr(whole, "\xe2\x82\xac\xf0\x9f\x98\x80.pem") != NULL);
    for (size_t size = 0; size <= strlen(whole) + 2; size++) {
        memset(cut, 0x55, sizeof cut);
        EQUAL(httpdown_tls_reload(old, &tls, cut, size), HTTPDOWN_STATUS_IO);
        for (size_t i = size; i < sizeof cut; i++) EQUAL(cut[i], 0x55);
        if (size == 0) continue;
        CHECK(memchr(cut, 0, size) != NULL && strncmp(cut, whole, strlen(cut)) == 0);
        CHECK(strlen(cut) + 4 >= size - 1 || strlen(cut) == strlen(whole));
    }
    EQUAL(httpdown_tls_reload(old, &tls, NULL, 100), HTTPDOWN_STATUS_IO);
    EQUAL(httpdown_tls_reload(old, &tls, whole, (size_t)-1), HTTPDOWN_STATUS_IO);
    end_old(f);
}

/* ---- handshakes that fail ---- */

static void a_handshake_has_its_time(void) {
    fixture *f = new_fixture();
    httpdown_tls tls = good_settings();
    tls.handshake_timeout_ms = 100;
    httpdown_options options = options_for(f, hello);
    record_all(&options);
    options.addr = "127.0.0.1:0";
    options.tls = &tls;
    httpdown_server *server = start(&options);
    int silent = dial(server);
    wait_told(f, HTTPDOWN_EVENT_CONN, HTTPDOWN_CONN_HANDSHAKING, NULL, 1);
    CHECK(is_at_end(silent));
    close(silent);
    wait_stat(f, HTTPDOWN_STAT_SUM, "tls.error.timeout", 1);
    httpdown_stop_report report = end_server(f, 0);
    EQUAL(report.connections, 1);
    EQUAL(report.conns_tls_timed_out, 1);
    free_fixture(f);
}

static void failed_handshakes_are_counted(void) {
    fixture *f = new_fixture();
    httpdown_tls tls = good_settings();
    httpdown_options options = options_for(f, hello);
    record_all(&options);
    options.addr = "127.0.0.1:0";
    options.tls = &tls;
    httpdown_server *server = start(&options);
    /* One that does not speak TLS, and one that does not trust us. */
    get(server, 400, NULL);
    wait_stat(f, HTTPDOWN_STAT_SUM, "tls.error.plain_http", 1);
    CHECK(!accepts(server, "other.pem"));
    wait_stat(f, HTTPDOWN_STAT_SUM, "tls.error.alert", 1);
    EQUAL(times_told(f, HTTPDOWN_EVENT_CONN, HTTPDOWN_CONN_NEW, NULL), 0);
    httpdown_stop_report report = end_server(f, 0);
    EQUAL(report.connections, 2);
    EQUAL(report.conns_tls_failed, 2);
    EQUAL(report.requests, 0);
    free_fixture(f);
}

/* ---- a stop ---- */

static void a_stop_lets_an_answer_finish(void) {
    fixture *f = new_fixture();
    httpdown_tls tls = good_settings();
    httpdown_server *server = serve_tls(f, slow, &tls);
    caller client = call(server, "ca.pem", "");
    put(client.fd, GET("/"));
    gate_wait(&f->entered, 1);
    EQUAL(httpdown_stop_begin(server), 0);
    gate_add(&f->release);
    expect(client.fd, 200, "slow");
    CHECK(is_at_end(client.fd));
    /* It would complain if the connection had ended without close_notify. */
    int status;
    CHECK(waitpid(client.pid, &status, 0) == client.pid);
    EQUAL(status, 0);
    close(client.fd);
    EQUAL(end_server(f, 0).served, 1);
    free_fixture(f);
}

/* The library may have been built without TLS, though the header in the source tree says that it has it. */
static bool library_has_tls(void) {
    pid_t pid = fork(); /* the tests begin where nothing of httpdown's has been used */
    if (pid == 0) {
        httpdown_tls tls = {.struct_size = sizeof tls};
        httpdown_options options = {.struct_size = sizeof options, .handler = hello, .tls = &tls};
        httpdown_server *server;
        _exit(httpdown_serve(&options, &server, NULL, 0) == HTTPDOWN_STATUS_UNSUPPORTED);
    }
    int status = -1;
    return pid > 0 && waitpid(pid, &status, 0) == pid && status == 0;
}

int main(int argc, char **argv) {
    (void)argc;
    tests_chosen = argv + 1;
    if (!library_has_tls()) {
        printf("tls: not run: the library has no TLS\n");
        return 0;
    }
    if (system("openssl version >/dev/null 2>&1") != 0) {
        printf("tls: not run: there is no openssl, which makes certificates\n");
        return 0;
    }
    bool is_made = mkdtemp(folder) != NULL && make_certificates();
    if (!is_made) {
        fprintf(stderr, "tls: no certificates\n");
        tests_failed++;
    } else {
        RUN(a_handler_learns_what_was_agreed);
        RUN(resumed_sessions_are_told_and_outlive_their_server);
        RUN(clients_have_certificates);
        RUN(a_plain_connection_has_nothing_to_tell);
        RUN(the_info_may_be_older_or_newer);
        RUN(what_is_told_lives_as_long_as_the_request);
        RUN(certificates_are_replaced_for_new_connections);
        RUN(files_are_read_again);
        RUN(a_handler_may_replace_them);
        RUN(only_a_server_with_tls_can_be_reloaded);
        RUN(settings_that_cannot_be_used_are_refused);
        RUN(settings_may_be_older_or_newer);
        RUN(init_sets_all);
        RUN(errors_are_cut_to_what_fits);
        RUN(a_handshake_has_its_time);
        RUN(failed_handshakes_are_counted);
        RUN(a_stop_lets_an_answer_finish);
    }
    run("rm -r $F");
    return test_end(argv[0]);
}

#else

int main(void) {
    printf("tls: not run: the library has no TLS\n");
    return 0;
}

#endif
