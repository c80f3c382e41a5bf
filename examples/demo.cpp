// The demo in C++: GET /?duration=20s answers at once, sleeps, and answers again. SIGTERM stops it: no request is lost.
#include <httpdown.hpp>

#include <iostream>
#include <unistd.h>

#include "cli.h"

using httpdown::milliseconds;

static void on_request(httpdown::request request) {
    const std::string duration = request.query_value("duration").value_or("0");
    std::uint32_t ms;
    if (!cli_duration(duration.data(), duration.size(), &ms)) {
        request.reply_text(400, "bad duration; write 300ms, 1.5s or 1m\n");
        return;
    }
    auto say = [&](const char *what) {
        return request.write(what + duration + " with pid " + std::to_string(getpid()) + "\n");
    };
    if (!request.start(200, {{"content-type", "text/plain; charset=utf-8"}})) return;
    if (!say("going to sleep ")) return;
    if (!request.wait_cancelled(milliseconds(ms))) say("slept ");
    request.finish();
}

int main(int argc, char **argv) {
    httpdown::options options;
    options.addr = "127.0.0.1:8080";
    options.stop_timeout = milliseconds(10000);
    options.kill_timeout = milliseconds(1000);
    for (int i = 1; i < argc; i++) {
        // "0" comes out as HTTPDOWN_NOW, which is longer than any timeout that can be written: here it is just 0.
        auto timeout = [&](const char *text) {
            const auto ms = cli_timeout(argv[0], text);
            return milliseconds(ms == HTTPDOWN_NOW ? 0 : ms);
        };
        if (auto addr = cli_flag(argv, &i, "addr")) options.addr = addr;
        else if (auto stop = cli_flag(argv, &i, "stop-timeout")) options.stop_timeout = timeout(stop);
        else if (auto kill = cli_flag(argv, &i, "kill-timeout")) options.kill_timeout = timeout(kill);
        else if (!cli_tls_flag(argv, &i)) {
            const char *flags = " [-addr A] [-stop-timeout D] [-kill-timeout D] [-tls-cert F -tls-key F]\n";
            return std::cerr << "usage: " << argv[0] << flags, 2;
        }
    }
    if (const auto *tls = cli_tls_settings()) {
        options.tls.emplace();
        options.reload_on_hup = true;
        if (tls->cert_file != nullptr) options.tls->cert_file = tls->cert_file;
        if (tls->key_file != nullptr) options.tls->key_file = tls->key_file;
    }
    options.handler = on_request;
    options.on_phase = [](httpdown::server_ref server, httpdown_phase_code phase) {
        if (phase == HTTPDOWN_PHASE_SERVING) cli_tell_address(server.get());
    };
    options.on_log = [](httpdown_log_level level, std::string_view text) {
        cli_on_warning(level, std::string(text).c_str(), nullptr);
    };
    try {
        const auto report = httpdown::run(std::move(options)); // until TERM or INT
        std::cout << "stopped after " << report.stop_duration_ms << " ms: " << report.requests << " requests, "
                  << report.served << " served\n";
    } catch (const httpdown::error &error) {
        return std::cerr << argv[0] << ": " << error.what() << "\n", 1;
    }
}
