#include "log.h"

#include "bindings.h"

#include "llama.h"

#include <atomic>
#include <cstdio>

namespace py = pybind11;

namespace loradrop::bindings {

static std::atomic<bool> verbose{false};

static thread_local std::string errors;
static thread_local bool        in_error = false;  // the last line was an error that may go on

static void on_log(ggml_log_level level, const char * text, void *) {
    if (level != GGML_LOG_LEVEL_CONT) {
        in_error = level == GGML_LOG_LEVEL_ERROR;
    }
    if (in_error) {
        errors += text;
    }
    if (verbose) {
        std::fputs(text, stderr);  // the user asked for it
    }
}

void clear_logged_errors() {
    errors.clear();
    in_error = false;
}

std::string logged_errors() {
    std::string out = errors;
    while (!out.empty() && out.back() == '\n') {
        out.pop_back();
    }
    return out;
}

void register_log(py::module_ & m) {
    llama_log_set(on_log, nullptr);
    m.def(
        "set_verbose", [](bool on) { verbose = on; }, py::arg("verbose"),
        "Show llama.cpp's log on stderr, for the whole process.");
    m.def(
        "build_info",
        [] {
            py::dict info;
            info["llama.cpp"] = llama_version();
            info["system"]    = llama_print_system_info();
            info["gpu"]       = llama_supports_gpu_offload();
            return info;
        },
        "Versions and processor features of the native code, and whether it has a GPU.");
}

}  // namespace loradrop::bindings
