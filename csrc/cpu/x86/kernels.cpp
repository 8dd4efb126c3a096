#include "cpu/x86/kernels.h"

#include "ggml.h"

namespace loradrop::cpu::LORADROP_KERNELS {

static const kernel * find_interleaved(int type) {
    switch (type) {
        case GGML_TYPE_Q4_0:
            return &q4_0_interleaved;
        case GGML_TYPE_IQ4_NL:
            return &iq4_nl_interleaved;
        case GGML_TYPE_MXFP4:
            return &mxfp4_interleaved;
        case GGML_TYPE_Q4_K:
            return &q4_K_interleaved;
        default:
            return nullptr;
    }
}

static const kernel * find_plain(int type) {
    switch (type) {
        case GGML_TYPE_Q4_0:
            return &q4_0_plain;
        case GGML_TYPE_Q4_1:
            return &q4_1_plain;
        case GGML_TYPE_Q5_0:
            return &q5_0_plain;
        case GGML_TYPE_Q5_1:
            return &q5_1_plain;
        case GGML_TYPE_Q8_0:
            return &q8_0_plain;
        case GGML_TYPE_Q4_K:
            return &q4_K_plain;
        case GGML_TYPE_Q5_K:
            return &q5_K_plain;
        case GGML_TYPE_Q6_K:
            return &q6_K_plain;
        default:
            return nullptr;
    }
}

const kernel * find_kernel(int type, bool interleaved) {
    return interleaved ? find_interleaved(type) : find_plain(type);
}

}  // namespace loradrop::cpu::LORADROP_KERNELS
