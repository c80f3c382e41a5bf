#include "test.hpp"

std::string ask_a_server_of_the_other_file() {
#if __cplusplus >= 202002L
    // C++20 has designated initialisers, and every option its default.
    httpdown::server server({
        .addr = "127.0.0.1:0",
        .handler = [](httpdown::request request) { request.reply_text(200, "from the other file"); },
    });
#else
    httpdown::server server(
        serving([](httpdown::request request) { request.reply_text(200, "from the other file"); }));
#endif
    return ask(server.local_addr(), "/");
}
