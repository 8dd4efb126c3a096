#include "loradrop/init_error.h"

#include "loradrop/hooks.h"

#include <utility>

namespace loradrop {

static thread_local std::exception_ptr kept;

void keep_init_error(std::exception_ptr error) {
    kept = std::move(error);
}

std::exception_ptr take_init_error() {
    return std::exchange(kept, nullptr);
}

}  // namespace loradrop
