// TLS in C++. The program openssl makes the certificates, and is the client.
#include "test.hpp"

#include <algorithm>
#include <fstream>
#include <sstream>

using httpdown::request;
using httpdown::tls_options;

namespace {

/// Whether a command of the shell has succeeded.
bool run(const std::string &command) { return std::system((command + " >/dev/null 2>&1").c_str()) == 0; }

/// Certificates in a folder of their own: those of one authority. Each is in NAME.pem, its key in NAME.key.
class authority {
public:
    authority() {
        char folder[] = "/tmp/httpdown-cpp-XXXXXX";
        if (mkdtemp(folder) == nullptr) return;
        folder_ = folder;
        std::ofstream(path("config")) << "[req]\ndistinguished_name = names\n[names]\n[ca]\n"
                                         "basicConstraints = critical, CA:TRUE\nkeyUsage = critical, keyCertSign\n";
        good_ = run(request_for("ca", "/CN=CA") + " -x509 -extensions ca -days 2 -out " + path("ca.pem"));
    }
    authority(const authority &) = delete;
    authority &operator=(const authority &) = delete;
    ~authority() {
        if (!folder_.empty()) run("rm -r " + folder_);
    }

    std::string path(const std::string &name) const { return folder_ + "/" + name; }

    std::string text(const std::string &name) const {
        std::ostringstream all;
        all << std::ifstream(path(name)).rdbuf();
        return all.str();
    }

    /// A certificate with one host name.
    void issue(const std::string &name, const std::string &subject) {
        std::ofstream(path("extensions")) << "subjectAltName = DNS:" << name << "\n";
        good_ = good_ && run(request_for(name, subject) + " -out " + path("request")) &&
                run("openssl x509 -req -days 2 -CAcreateserial -in " + path("request") + " -CA " + path("ca.pem") +
                    " -CAkey " + path("ca.key") + " -extfile " + path("extensions") + " -out " + path(name + ".pem"));
    }

    /// Whether openssl has made all of it.
    bool good() const { return good_; }

    tls_options settings(const std::string &name) const {
        tls_options tls;
        tls.cert_file = path(name + ".pem");
        tls.key_file = path(name + ".key");
        return tls;
    }

    /// The whole answer to one request; empty if the client does not accept the server, or the server the client.
    std::string ask(const std::string &addr, const std::string &name, const std::string &flags = "") const {
        const std::string client = "openssl s_client -quiet -verify_return_error -connect " + addr + " -servername " +
                                   name + " -verify_hostname " + name + " -CAfile " + path("ca.pem") + " " + flags;
        const std::string sent = "printf 'GET / HTTP/1.1\\r\\nHost: test\\r\\nConnection: close\\r\\n\\r\\n'";
        FILE *answer = popen((sent + " | timeout 30 " + client + " 2>/dev/null").c_str(), "r");
        std::string all;
        if (answer == nullptr) return all;
        char buffer[4096];
        while (const std::size_t count = fread(buffer, 1, sizeof buffer, answer)) all.append(buffer, count);
        pclose(answer);
        return all;
    }

private:
    std::string request_for(const std::string &name, const std::string &subject) const {
        return "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -config " + path("config") +
               " -subj '" + subject + "' -keyout " + path(name + ".key");
    }

    std::string folder_{};
    bool good_ = false;
};

/// One for all tests; nullptr where there is no openssl.
const authority *certificates() {
    static const std::unique_ptr<authority> all = [] {
        auto made = run("openssl version") ? std::make_unique<authority>() : nullptr;
        if (made == nullptr) return made;
        made->issue("localhost", "/CN=localhost");
        made->issue("other.example.com", "/CN=other");
        made->issue("renewed.example.com", "/CN=renewed");
        made->issue("alice.example.com", "/O=Example/CN=alice");
        CHECK(made->good());
        return made;
    }();
    if (all == nullptr) std::printf("not run: there is no openssl, which makes certificates\n");
    return all.get();
}

template <typename Handler>
httpdown::options serving_tls(const tls_options &tls, Handler handler) {
    auto options = serving(std::move(handler));
    options.addr = "127.0.0.1:0"; // openssl does not connect to abstract sockets
    options.tls = tls;
    return options;
}

void hello(request request) { request.reply_text(200, "Hello, World!"); }

} // namespace

void a_request_by_tls_says_how_it_came() {
    const auto *all = certificates();
    if (all == nullptr) return;
    for (const bool is_old : {false, true}) {
        std::promise<request> kept;
        auto options = serving_tls(all->settings("localhost"), [&](request request) {
            CHECK(request.scheme() == "https");
            CHECK(request.reply_text(200, "by TLS"));
            kept.set_value(std::move(request)); // what it says outlives the answer
        });
        options.tls->handshake_timeout = std::chrono::seconds(60);
        options.tls->handshakes = 1;
        httpdown::server server(std::move(options));
        CHECK(ends_with(all->ask(server.local_addr(), "localhost", is_old ? "-tls1_2" : "-alpn http/1.1"), "by TLS"));
        const auto request = kept.get_future().get();
        const auto tls = request.tls();
        CHECK(tls.has_value());
        if (!tls) return;
        CHECK(tls->version == (is_old ? HTTPDOWN_TLS_1_2 : HTTPDOWN_TLS_1_3) && !tls->resumed);
        CHECK(starts_with(tls->cipher_suite, is_old ? "TLS_ECDHE_" : "TLS13_"));
        CHECK(tls->server_name == "localhost");
        CHECK(is_old ? tls->alpn.data() == nullptr : tls->alpn == "http/1.1");
        CHECK(tls->client_certificate.data() == nullptr && tls->client_subject.data() == nullptr);

        // HTTP without TLS.
        CHECK(starts_with(ask(server.local_addr(), "/"), "HTTP/1.1 400 "));
        const auto report = server.stop();
        CHECK(report.served == 1 && report.connections == 2 && report.conns_tls_failed == 1);
    }
}

void clients_can_have_certificates() {
    const auto *all = certificates();
    if (all == nullptr) return;
    auto tls = all->settings("localhost");
    tls.client_auth = HTTPDOWN_CLIENT_AUTH_REQUIRED;
    tls.ca = all->text("ca.pem");
    tls.min_version = HTTPDOWN_TLS_1_3;
    httpdown::server server(serving_tls(tls, [](request request) {
        const auto info = request.tls();
        CHECK(info && !info->client_certificate.empty() && info->client_subject == "CN=alice,O=Example");
        CHECK(info && info->client_names == "alice.example.com");
        const auto is_zero = [](std::uint8_t byte) { return byte == 0; };
        CHECK(info && !std::all_of(info->client_fingerprint.begin(), info->client_fingerprint.end(), is_zero));
        hello(std::move(request));
    }));
    const auto own = " -cert " + all->path("alice.example.com.pem") + " -key " + all->path("alice.example.com.key");
    CHECK(ends_with(all->ask(server.local_addr(), "localhost", own), "Hello, World!"));
    CHECK(all->ask(server.local_addr(), "localhost").empty());
    CHECK(all->ask(server.local_addr(), "localhost", "-tls1_2" + own).empty());
    const auto report = server.stop();
    CHECK(report.served == 1 && report.conns_tls_failed == 2);
}

void certificates_are_chosen_by_name_and_replaced() {
    const auto *all = certificates();
    if (all == nullptr) return;
    lines told;
    auto options = serving_tls(all->settings("localhost"), hello);
    // In memory. The settings live only as long as the call.
    options.tls->more = {{{}, {}, all->text("other.example.com.pem"), all->text("other.example.com.key")}};
    options.tls->ticket_keys = std::string(48, 'x');
    options.on_conn_state = [&](httpdown::server_ref, std::uint64_t, httpdown_conn_state state, std::string_view) {
        if (state == HTTPDOWN_CONN_HANDSHAKING) told.add("handshaking");
    };
    httpdown::server server(options);
    CHECK(options.tls->more.size() == 1); // a copy was taken
    const auto accepts = [&](const std::string &name) { return !all->ask(server.local_addr(), name).empty(); };
    CHECK(accepts("localhost") && accepts("other.example.com") && !accepts("renewed.example.com"));
    CHECK(told.wait_for("handshaking"));

    server.tls_reload(all->settings("renewed.example.com"));
    CHECK(accepts("renewed.example.com") && !accepts("localhost") && !accepts("other.example.com"));

    auto bad = all->settings("localhost");
    bad.key_file = all->path("ca.key");
    try {
        server.tls_reload(bad);
        not_so(__FILE__, __LINE__, "it is refused");
    } catch (const httpdown::error &error) {
        CHECK(error.status() == HTTPDOWN_STATUS_TLS);
        CHECK_CONTAINS(error.what(), "ca.key");
    }
    int status = -1;
    std::string what;
    CHECK(!server.tls_reload(bad, status) && status == HTTPDOWN_STATUS_TLS);
    bad.key_file = "/nowhere";
    CHECK(!server.tls_reload(bad, status, &what) && status == HTTPDOWN_STATUS_IO);
    CHECK_CONTAINS(what, "/nowhere");
    CHECK(accepts("renewed.example.com"));
    CHECK(server.tls_reload(all->settings("localhost"), status, &what) && status == HTTPDOWN_STATUS_OK && what.empty());
    CHECK(accepts("localhost"));
}

void bad_tls_settings_are_errors_with_a_reason() {
    const auto *all = certificates();
    if (all == nullptr) return;
    const auto good = all->settings("localhost");
    const auto refused = [](const tls_options &tls, int status, std::string_view reason) {
        try {
            httpdown::server server(serving_tls(tls, hello));
            not_so(__FILE__, __LINE__, "it is refused");
        } catch (const httpdown::error &error) {
            CHECK(error.status() == status);
            CHECK_CONTAINS(error.what(), reason);
        }
    };
    refused({}, HTTPDOWN_STATUS_INVALID_ARGUMENT, "tls.cert");
    auto tls = good;
    tls.cert_file = "/nowhere";
    refused(tls, HTTPDOWN_STATUS_IO, "/nowhere");
    tls = good;
    tls.key = "both";
    refused(tls, HTTPDOWN_STATUS_INVALID_ARGUMENT, "tls.key");
    tls = good;
    tls.key_file = tls.cert_file;
    refused(tls, HTTPDOWN_STATUS_TLS, "contains no private key");
    tls = good;
    tls.more.resize(2);
    refused(tls, HTTPDOWN_STATUS_INVALID_ARGUMENT, "tls.more[0]");
    tls = good;
    tls.client_auth = HTTPDOWN_CLIENT_AUTH_OPTIONAL;
    refused(tls, HTTPDOWN_STATUS_INVALID_ARGUMENT, "tls.ca");
    tls.ca_file = all->path("ca.pem");
    tls.crl_file = tls.ca_file;
    refused(tls, HTTPDOWN_STATUS_TLS, "revocation list");
    tls = good;
    tls.ticket_keys = "short";
    refused(tls, HTTPDOWN_STATUS_INVALID_ARGUMENT, "each key has 48");
}
