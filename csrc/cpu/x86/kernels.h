// The kernels of a set of instructions; compiled for each, in a namespace of its name.
#pragma once

#include "cpu/kernel.h"

namespace loradrop::cpu::LORADROP_KERNELS {

extern const kernel q4_0_plain;
extern const kernel q4_1_plain;
extern const kernel q5_0_plain;
extern const kernel q5_1_plain;
extern const kernel q8_0_plain;
extern const kernel q4_K_plain;
extern const kernel q5_K_plain;
extern const kernel q6_K_plain;

extern const kernel q4_0_interleaved;
extern const kernel iq4_nl_interleaved;
extern const kernel mxfp4_interleaved;
extern const kernel q4_K_interleaved;

}  // namespace loradrop::cpu::LORADROP_KERNELS
