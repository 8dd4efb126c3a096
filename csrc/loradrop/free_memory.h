#pragma once

#include <cstdint>
#include <string>

namespace loradrop {

// Bytes of memory that the system, and the limits on this process, could give without swapping; 0 when it does not
// tell.
uint64_t free_memory();

// An allocation that the system grants but cannot keep ends the process later.
// Throws std::runtime_error, which begins with `what`, when so many bytes are not free.
void check_free_memory(uint64_t need, const std::string & what);

}  // namespace loradrop
