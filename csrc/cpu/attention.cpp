#include "cpu/attention.h"

namespace loradrop::cpu {

bool attend(const ggml_compute_params &, ggml_tensor &) {
    return false;
}

size_t attend_work_size(const ggml_tensor &, int) {
    return 0;
}

}  // namespace loradrop::cpu
