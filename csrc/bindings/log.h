// What llama.cpp logs: kept for error messages, shown only when asked for.
#pragma once

#include <string>

namespace loradrop::bindings {

// Forgets what this thread has logged so far.
void clear_logged_errors();

// The errors that llama.cpp has logged on this thread since then, one after the other; may be empty.
std::string logged_errors();

}  // namespace loradrop::bindings
