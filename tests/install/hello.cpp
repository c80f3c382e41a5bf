#include <httpdown.hpp>
#include <iostream>

int main() {
    httpdown::options options;
    options.addr = "127.0.0.1:0";
    options.handler = [](httpdown::request request) { request.reply_text(200, "Hello, World!"); };
    options.on_phase = [](httpdown::server_ref server, httpdown_phase_code phase) {
        if (phase == HTTPDOWN_PHASE_SERVING) std::cout << "http://" << server.local_addr() << "/" << std::endl;
    };
    httpdown::run(std::move(options)); // until TERM or INT
}
