// The rules by which a layer that does not run is replaced in a LoRA step.
#pragma once

#include <string>

namespace loradrop {

enum class reuse_rule {
    previous_state,  // y_t = y_{t-1} + s B A x_t                               (arXiv 2601.02569)
    anchor_state,    // y_t = y_r + s B A x_t                                   (the paper's reference code)
    anchor_delta,    // y_t = x_t + g (y_r - x_r) + s B A n(x_t)
    segment,         // y_t = x_t + g (y_r - x_r) + s B A f + D (silu(G f) (U f)), f = [n(x_t); n(y_r); n(x_r)]
};

// n() is RMS norm without weight; its epsilon is part of the method, not of the model.
constexpr float reuse_norm_eps = 1e-5f;

// False when the name is none of the four.
bool parse_reuse_rule(const std::string & name, reuse_rule & rule);

const char * reuse_rule_name(reuse_rule rule);

}  // namespace loradrop
