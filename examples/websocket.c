/* A WebSocket server that sends each message back, with wslay (the protocol) and nettle (SHA-1 and Base64).
 *
 *     websocket [-addr A] [-stop-timeout D] [-tls-cert F -tls-key F]
 *
 * No thread waits for a client: a session goes on when something has happened to it. Only httpdown's thread that drives
 * the connection runs the session, so there are no locks. When the server drains, each session says Close (1001, going
 * away), and ends when its client has said Close, too: so its client can go on elsewhere, and nothing is lost.
 *
 * Browsers let any page connect to any WebSocket. A server that knows its users by cookies must look at Origin.
 */
#include <httpdown.h>
#include <nettle/base64.h>
#include <nettle/sha1.h>
#include <strings.h>
#include <wslay/wslay.h>

#include "cli.h"

#define MAX_MESSAGE (16u << 20)

typedef struct {
    httpdown_stream *stream;
    wslay_event_context_ptr ws;
    bool goes_away; /* We have said so. */
} session;

/* Nothing was read, or written. Later it may be, or never again. */
static ssize_t nothing(wslay_event_context_ptr ws, int status) {
    bool is_over = status != HTTPDOWN_STATUS_WOULD_BLOCK;
    wslay_event_set_error(ws, is_over ? WSLAY_ERR_CALLBACK_FAILURE : WSLAY_ERR_WOULDBLOCK);
    return -1;
}

/* wslay wants bytes. While an answer waits to be sent, it gets none: so a client that only sends fills no memory. */
static ssize_t receive(wslay_event_context_ptr ws, uint8_t *bytes, size_t size, int flags, void *user_data) {
    (void)flags;
    session *s = user_data;
    size_t count = 0;
    int status = HTTPDOWN_STATUS_WOULD_BLOCK;
    if (!wslay_event_want_write(ws)) status = httpdown_stream_read(s->stream, bytes, size, HTTPDOWN_NOW, &count);
    if (status == HTTPDOWN_STATUS_OK && count > 0) return (ssize_t)count;
    /* An end without a Close is a failure. */
    return nothing(ws, status);
}

static ssize_t transmit(wslay_event_context_ptr ws, const uint8_t *bytes, size_t size, int flags, void *user_data) {
    (void)flags;
    session *s = user_data;
    size_t taken = 0;
    int status = httpdown_stream_write(s->stream, bytes, size, HTTPDOWN_NOW, &taken);
    if (status == HTTPDOWN_STATUS_OK) return (ssize_t)taken;
    return nothing(ws, status);
}

/* A message is complete. Pings and Closes are answered by wslay. */
static void on_message(wslay_event_context_ptr ws, const struct wslay_event_on_msg_recv_arg *message, void *user_data) {
    (void)user_data;
    if (wslay_is_ctrl_frame(message->opcode)) return;
    struct wslay_event_msg echo = {message->opcode, message->msg, message->msg_length};
    /* After our Close, wslay takes no more messages; the client knows by then. */
    if (wslay_event_queue_msg(ws, &echo) == WSLAY_ERR_NOMEM)
        wslay_event_queue_close(ws, WSLAY_CODE_INTERNAL_SERVER_ERROR, NULL, 0);
}

static void end(session *s) {
    wslay_event_context_free(s->ws);
    /* The connection's end is not waited for here, but what was sent last still arrives. */
    httpdown_stream_free(s->stream);
    free(s);
}

/* Does what can be done now, and asks to be told when there is more. */
static void go_on(httpdown_stream *stream, uint32_t ready, void *user_data) {
    session *s = user_data;
    if ((ready & HTTPDOWN_DRAINING) && !s->goes_away) {
        s->goes_away = true;
        wslay_event_queue_close(s->ws, WSLAY_CODE_GOING_AWAY, NULL, 0);
    }
    int received = wslay_event_recv(s->ws);
    /* Also behind an error: wslay has a Close for a client that has broken the protocol. */
    int sent = wslay_event_send(s->ws);
    if (received == 0 && sent == 0) {
        bool sends = wslay_event_want_write(s->ws);
        uint32_t wanted = sends ? HTTPDOWN_WRITABLE : wslay_event_want_read(s->ws) ? HTTPDOWN_READABLE : 0;
        /* Both sides have said Close if there is nothing to wait for. Behind the call, the session may have ended. */
        if (wanted != 0) {
            if (!s->goes_away) wanted |= HTTPDOWN_DRAINING;
            if (httpdown_stream_notify(stream, wanted, go_on, s, NULL) == 0) return;
        }
    }
    end(s);
}

static void begin(httpdown_stream *stream) {
    static const struct wslay_event_callbacks callbacks = {
        .recv_callback = receive,
        .send_callback = transmit,
        .on_msg_recv_callback = on_message,
    };
    session *s = calloc(1, sizeof *s);
    if (s == NULL || wslay_event_context_server_init(&s->ws, &callbacks, s) != 0) {
        free(s);
        httpdown_stream_free(stream);
        return;
    }
    wslay_event_config_set_max_recv_msg_length(s->ws, MAX_MESSAGE);
    s->stream = stream;
    go_on(stream, 0, s);
}

/* Whether a list of words with commas between them, such as "keep-alive, Upgrade", has this word. */
static bool has_word(httpdown_bytes list, const char *word) {
    const char *at = list.data, *end = at + list.len;
    size_t len = strlen(word);
    while (at < end) {
        const char *comma = memchr(at, ',', (size_t)(end - at)), *next = comma == NULL ? end : comma + 1;
        const char *last = comma == NULL ? end : comma;
        while (at < last && (*at == ' ' || *at == '\t')) at++;
        while (last > at && (last[-1] == ' ' || last[-1] == '\t')) last--;
        if ((size_t)(last - at) == len && strncasecmp(at, word, len) == 0) return true;
        at = next;
    }
    return false;
}

/* A key is 16 bytes in Base64 (RFC 6455, 4.2.1). */
static bool is_key(httpdown_bytes key) {
    struct base64_decode_ctx base64;
    uint8_t bytes[BASE64_DECODE_LENGTH(24)];
    size_t len = sizeof bytes;
    base64_decode_init(&base64);
    return key.len == 24 && base64_decode_update(&base64, &len, bytes, key.len, key.data) && len == 16 &&
           base64_decode_final(&base64);
}

/* By this the client sees that we have understood (4.2.2). */
static void accept_key(httpdown_bytes key, char accept[BASE64_ENCODE_RAW_LENGTH(SHA1_DIGEST_SIZE)]) {
    static const char guid[] = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    struct sha1_ctx sha1;
    uint8_t digest[SHA1_DIGEST_SIZE];
    sha1_init(&sha1);
    sha1_update(&sha1, key.len, (const uint8_t *)key.data);
    sha1_update(&sha1, sizeof guid - 1, (const uint8_t *)guid);
    sha1_digest(&sha1, sizeof digest, digest);
    base64_encode_raw(accept, sizeof digest, digest);
}

/* Says what would have been right (4.2.2, 4.4). */
static void refuse(httpdown_request *request, int status, const char *why) {
    httpdown_header headers[] = {
        {httpdown_str("upgrade"), httpdown_str("websocket")},
        {httpdown_str("sec-websocket-version"), httpdown_str("13")},
        {httpdown_str("content-type"), httpdown_str("text/plain")},
    };
    httpdown_reply(request, status, headers, 3, why, strlen(why));
}

static void on_request(httpdown_request *request, void *user_data) {
    (void)user_data;
    httpdown_bytes key = httpdown_request_header(request, "sec-websocket-key");
    httpdown_bytes version = httpdown_request_header(request, "sec-websocket-version");
    if (!httpdown_request_asks_for_upgrade(request) ||
        !has_word(httpdown_request_header(request, "upgrade"), "websocket")) {
        refuse(request, 426, "this is a WebSocket\n");
    } else if (!httpdown_bytes_equal(version, "13")) {
        refuse(request, 426, "only version 13 is spoken here\n");
    } else if (!httpdown_bytes_equal(httpdown_request_method(request), "GET") || !is_key(key)) {
        refuse(request, 400, "a handshake is a GET with a key of 16 bytes\n");
    } else {
        char accept[BASE64_ENCODE_RAW_LENGTH(SHA1_DIGEST_SIZE)];
        accept_key(key, accept);
        httpdown_header headers[] = {
            {httpdown_str("upgrade"), httpdown_str("websocket")},
            {httpdown_str("sec-websocket-accept"), {accept, sizeof accept}},
        };
        httpdown_stream *stream;
        if (httpdown_upgrade(request, headers, 2, &stream) == 0) begin(stream);
    }
}

int main(int argc, char **argv) {
    httpdown_options options = {
        .struct_size = sizeof options,
        .addr = "127.0.0.1:8080",
        .handler = on_request,
        .dispatch = HTTPDOWN_DISPATCH_INLINE,
        .on_phase = cli_on_phase,
        .on_log = cli_on_warning,
        .stop_timeout_ms = 10000, /* So long a client may take for its Close. */
        .tcp_keepalive_ms = 60000, /* Sessions are silent for long. So the kernel asks whether their clients live. */
    };
    for (int i = 1; i < argc; i++) {
        const char *value;
        if ((value = cli_flag(argv, &i, "addr"))) options.addr = value;
        else if ((value = cli_flag(argv, &i, "stop-timeout"))) options.stop_timeout_ms = cli_timeout(argv[0], value);
        else if (!cli_tls_flag(argv, &i))
            return fprintf(stderr, "usage: %s [-addr A] [-stop-timeout D] [-tls-cert F -tls-key F]\n", argv[0]), 2;
    }
    options.tls = cli_tls_settings();
    char error[256];
    httpdown_stop_report report = {.struct_size = sizeof report};
    int status = httpdown_run(&options, &report, error, sizeof error); /* until TERM or INT */
    cli_print_report(&report);
    if (status != 0) fprintf(stderr, "%s: %s: %s\n", argv[0], httpdown_status_string(status), error);
    return status != 0;
}
