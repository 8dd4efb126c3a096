// The scales of Q4_K and Q5_K. Each file that includes this has its own, compiled for its own instruction set.
#pragma once

#include <cstdint>

namespace loradrop::cpu {

// Scales and mins of the eight sub-blocks of a block, or of eight rows' sub-block: eight bytes each.
static inline void unpack_scales(const uint8_t * packed, uint64_t & scales, uint64_t & mins) {
    typedef uint32_t __attribute__((may_alias, aligned(1))) word;
    const uint32_t w0 = *reinterpret_cast<const word *>(packed);
    const uint32_t w1 = *reinterpret_cast<const word *>(packed + 4);
    const uint32_t w2 = *reinterpret_cast<const word *>(packed + 8);
    scales            = (w0 & 0x3f3f3f3f) | uint64_t((w2 & 0x0f0f0f0f) | ((w0 >> 2) & 0x30303030)) << 32;
    mins              = (w1 & 0x3f3f3f3f) | uint64_t(((w2 >> 4) & 0x0f0f0f0f) | ((w1 >> 2) & 0x30303030)) << 32;
}

}  // namespace loradrop::cpu
