// Nothing but products of bytes, as quickly as a set of instructions allows: what no kernel of that set can exceed.
#pragma once

#include <stdint.h>

namespace loradrop::cpu {

// Multiplies and adds in registers alone, and returns how many products that were.
namespace avx2 {
int64_t multiply_bytes(int64_t rounds);
}
namespace avx_vnni {
int64_t multiply_bytes(int64_t rounds);
}
namespace avx512 {
int64_t multiply_bytes(int64_t rounds);
}

}  // namespace loradrop::cpu
