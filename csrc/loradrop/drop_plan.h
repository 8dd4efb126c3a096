// Which layers drop at a given rho, as runs that one replacement serves.
#pragma once

#include "loradrop/corrector.h"

#include <cstdint>
#include <vector>

namespace loradrop {

// Layers first..last are replaced together; segment is the index in the corrector's list, -1 for one layer.
struct drop_run {
    int32_t first;
    int32_t last;
    int32_t segment;
};

// Number of layers that rho asks for: round(rho * n_layer), halves up, also where rho was stored as f32.
int32_t layers_for_rho(double rho, int32_t n_layer);

// Runs in ascending order. Throws std::invalid_argument when rho asks for no layer or for more than can drop.
std::vector<drop_run> plan_runs(const corrector & c, double rho, int32_t n_layer);

}  // namespace loradrop
