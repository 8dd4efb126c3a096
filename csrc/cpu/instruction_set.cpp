#include "cpu/instruction_set.h"

#include <atomic>

namespace loradrop::cpu {

const char * name_of(instruction_set set) {
    switch (set) {
        case instruction_set::avx2:
            return "avx2";
        case instruction_set::avx_vnni:
            return "avx-vnni";
        case instruction_set::avx512:
            return "avx512";
        case instruction_set::none:
            break;
    }
    return "llama.cpp";
}

std::vector<instruction_set> available_instruction_sets() {
    std::vector<instruction_set> sets = {instruction_set::none};
    // Bits are compared with ggml's code as it was compiled; this file has the same flags.
#if defined(LORADROP_X86_KERNELS) && defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c")) {
        return sets;
    }
    sets.push_back(instruction_set::avx2);
    if (__builtin_cpu_supports("avxvnni")) {
        sets.push_back(instruction_set::avx_vnni);
    }
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
        __builtin_cpu_supports("avx512vnni")) {
        sets.push_back(instruction_set::avx512);
    }
#endif
    return sets;
}

static std::atomic<instruction_set> & current() {
    static std::atomic<instruction_set> set(available_instruction_sets().back());
    return set;
}

instruction_set current_instruction_set() {
    return current().load(std::memory_order_relaxed);
}

void use_instruction_set(instruction_set set) {
    current().store(set, std::memory_order_relaxed);
}

}  // namespace loradrop::cpu
