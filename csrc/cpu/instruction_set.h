// Which instructions the kernels use: what this processor has, unless a test or a measurement asks for less.
#pragma once

#include <vector>

namespace loradrop::cpu {

// In the order of preference, the last first.
enum class instruction_set {
    none,      // llama.cpp's own kernels, for every batch
    avx2,      // with FMA and F16C
    avx_vnni,  // AVX2 and AVX-VNNI
    avx512,    // AVX-512 F, BW, DQ, VL, VBMI and VNNI
};

const char * name_of(instruction_set set);

// What this processor can do, `none` first.
std::vector<instruction_set> available_instruction_sets();

// At first the best of those.
instruction_set current_instruction_set();

// Must be available, and no graph may be running.
void use_instruction_set(instruction_set set);

}  // namespace loradrop::cpu
