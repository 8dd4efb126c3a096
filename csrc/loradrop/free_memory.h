#pragma once

#include <cstdint>

namespace loradrop {

// Bytes of memory that the system, and the limits on this process, could give without swapping; 0 when it does not
// tell.
uint64_t free_memory();

}  // namespace loradrop
