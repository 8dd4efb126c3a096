// expf of many numbers at once, with the bits that the C library's expf gives each.
#pragma once

namespace loradrop::cpu {

// Reads and writes up to 15 numbers more. Meant for x from -87 to 0; others are right, and slow.
void exponentials(const float * x, float * out, int n);

}  // namespace loradrop::cpu
