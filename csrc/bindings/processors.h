// Processors that this process may use.
#pragma once

#include <cstdint>

namespace loradrop::bindings {

// Those of its affinity, and no more than its control group's quota (rounded up) where there is one; 1 or more. More
// threads would only wait for each other.
int32_t usable_processors();

}  // namespace loradrop::bindings
