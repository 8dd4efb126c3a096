#include "cpu/instruction_set.h"

// Bits are compared with ggml's code as it was compiled; this file has the same flags.
#if defined(LORADROP_X86_KERNELS) && defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#    define LORADROP_HAS_KERNELS
#    include <cpuid.h>
#endif

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

#ifdef LORADROP_HAS_KERNELS
// What Clang's __builtin_cpu_supports has no names for.
static bool has_f16c() {
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}

static bool has_avx_vnni() {
    constexpr unsigned avx_vnni = 1u << 4;
    unsigned           eax, ebx, ecx, edx;
    return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & avx_vnni);
}
#endif

std::vector<instruction_set> available_instruction_sets() {
    std::vector<instruction_set> sets = {instruction_set::none};
#ifdef LORADROP_HAS_KERNELS
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !has_f16c()) {
        return sets;
    }
    sets.push_back(instruction_set::avx2);
    if (has_avx_vnni()) {
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
