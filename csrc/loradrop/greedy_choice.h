// The most probable token.
#pragma once

#include <cstddef>
#include <cstdint>

namespace loradrop {

struct greedy_choice {
    int32_t token;
    float   margin;  // by how much its logit is above the next best
};

// The greatest of them; -inf where there is none that could be compared.
float greatest(const float * begin, const float * end);

// n: 2 or more. Of equal logits the first; token 0 where there is none that could be compared.
greedy_choice choose_greedily(const float * logits, size_t n);

}  // namespace loradrop
