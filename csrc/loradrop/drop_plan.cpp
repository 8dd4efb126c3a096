#include "loradrop/drop_plan.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace loradrop {

int32_t layers_for_rho(double rho, int32_t n_layer) {
    constexpr double f32_rounding = 1e-5;  // of rho * n_layer
    return static_cast<int32_t>(std::floor(rho * n_layer + 0.5 + f32_rounding));
}

static std::string point(double rho, int32_t n, int32_t n_layer) {
    return "rho = " + std::to_string(rho) + " drops " + std::to_string(n) + " of " + std::to_string(n_layer) +
           " layers; ";
}

static drop_run longest_segment(const corrector & c, int32_t n, const std::string & asked) {
    const auto length   = [](const layer_span & s) { return s.second - s.first + 1; };
    int32_t    best     = -1;
    int32_t    shortest = length(c.segments.front());
    int32_t    longest  = 0;
    for (size_t j = 0; j < c.segments.size(); ++j) {
        const int32_t len = length(c.segments[j]);
        shortest          = std::min(shortest, len);
        longest           = std::max(longest, len);
        if (len <= n && (best < 0 || len > length(c.segments[best]))) {
            best = static_cast<int32_t>(j);
        }
    }
    if (best < 0) {
        throw std::invalid_argument(asked + "the shortest run of this corrector has " + std::to_string(shortest));
    }
    if (n > longest) {
        throw std::invalid_argument(asked + "the longest run of this corrector has " + std::to_string(longest));
    }
    return {c.segments[best].first, c.segments[best].second, best};
}

std::vector<drop_run> plan_runs(const corrector & c, double rho, int32_t n_layer) {
    if (!(rho > 0.0 && rho < 1.0)) {
        throw std::invalid_argument("rho = " + std::to_string(rho) + ", expected 0 < rho < 1");
    }
    const int32_t     n     = layers_for_rho(rho, n_layer);
    const std::string asked = point(rho, n, n_layer);
    if (n < 1) {
        throw std::invalid_argument(asked + "use rho = 0 to decode in full");
    }
    if (c.rule == reuse_rule::segment) {
        return {longest_segment(c, n, asked)};
    }
    const auto n_most = static_cast<int32_t>(c.layers.size());
    if (n > n_most) {
        throw std::invalid_argument(asked + "at most " + std::to_string(n_most) +
                                    " can drop, rho = " + std::to_string(static_cast<double>(n_most) / n_layer));
    }
    std::vector<int32_t> chosen(c.layers.begin(), c.layers.begin() + n);
    std::sort(chosen.begin(), chosen.end());

    std::vector<drop_run> runs;
    for (const int32_t il : chosen) {
        runs.push_back({il, il, -1});
    }
    return runs;
}

}  // namespace loradrop
