// llama_init_from_model gives a null for every failure; this gives the reason.
#pragma once

#include <exception>

namespace loradrop {

// The exception that ended the last creation of a context on this thread; null when there was none.
std::exception_ptr take_init_error();

}  // namespace loradrop
