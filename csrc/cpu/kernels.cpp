#include "cpu/kernels.h"

#include "cpu/instruction_set.h"

#include "ggml-backend-impl.h"
#include "repack.h"

namespace loradrop::cpu {

static const kernel * find_kernel([[maybe_unused]] ggml_type type, [[maybe_unused]] bool interleaved) {
#ifdef LORADROP_X86_KERNELS
    switch (current_instruction_set()) {
        case instruction_set::avx2:
            return avx2::find_kernel(type, interleaved);
        case instruction_set::avx_vnni:
            return avx_vnni::find_kernel(type, interleaved);
        case instruction_set::avx512:
            return avx512::find_kernel(type, interleaved);
        case instruction_set::none:
            break;
    }
#endif
    return nullptr;
}

// ggml marks weights that it has interleaved by their traits in `extra`.
bool is_interleaved([[maybe_unused]] const ggml_tensor & weights) {
#ifdef GGML_USE_CPU_REPACK
    return weights.buffer->buft == ggml_backend_cpu_repack_buffer_type() && weights.extra;
#else
    return false;
#endif
}

const kernel * find_kernel(const ggml_tensor & weights) {
    if (!ggml_is_quantized(weights.type) || !weights.buffer) {
        return nullptr;
    }
    if (is_interleaved(weights)) {
        return find_kernel(weights.type, true);
    }
    return ggml_backend_buffer_is_host(weights.buffer) ? find_kernel(weights.type, false) : nullptr;
}

}  // namespace loradrop::cpu
