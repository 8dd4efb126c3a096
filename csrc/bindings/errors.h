// Failures on their way to Python.
#pragma once

#include <stdexcept>
#include <string>

namespace loradrop::bindings {

// A model file that cannot be loaded.
struct model_error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// A decode that failed.
struct decode_error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// No room in the context for the tokens of a batch.
struct context_full_error : decode_error {
    using decode_error::decode_error;
};

// A decode that was asked to stop.
struct decode_aborted : decode_error {
    using decode_error::decode_error;
};

// A check inside llama.cpp or ggml that would have ended the process.
struct engine_abort : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// While this lives, a failed check of ggml on this thread throws engine_abort instead of ending the process.
class abort_guard {
  public:
    abort_guard();
    ~abort_guard();

    abort_guard(const abort_guard &)             = delete;
    abort_guard & operator=(const abort_guard &) = delete;

  private:
    bool outer;
};

}  // namespace loradrop::bindings
