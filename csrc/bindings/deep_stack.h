// Work whose recursion grows with its input.
#pragma once

#include <cstddef>
#include <functional>

namespace loradrop::bindings {

// Runs work on a thread that has at least so much stack; what it throws comes out of here. Where threads have no stacks
// of a given size (Windows), it runs on this one.
// Throws std::runtime_error when there is no room for the stack.
void with_stack(size_t n_bytes, const std::function<void()> & work);

}  // namespace loradrop::bindings
