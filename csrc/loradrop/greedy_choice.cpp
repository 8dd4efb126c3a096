#include "loradrop/greedy_choice.h"

#include <algorithm>
#include <array>
#include <limits>

namespace loradrop {

// In lanes, for a compiler may not reorder a plain maximum of floats, and there are up to a quarter of a million.
float greatest(const float * begin, const float * end) {
    std::array<float, 16> lanes;
    lanes.fill(-std::numeric_limits<float>::infinity());
    for (; end - begin >= static_cast<std::ptrdiff_t>(lanes.size()); begin += lanes.size()) {
        for (size_t i = 0; i < lanes.size(); ++i) {
            lanes[i] = begin[i] > lanes[i] ? begin[i] : lanes[i];
        }
    }
    for (; begin != end; ++begin) {
        lanes[0] = *begin > lanes[0] ? *begin : lanes[0];
    }
    return *std::max_element(lanes.begin(), lanes.end());
}

greedy_choice choose_greedily(const float * logits, size_t n) {
    const float * end  = logits + n;
    const float   best = greatest(logits, end);
    const float * at   = std::find(logits, end, best);
    if (at == end) {
        return {0, 0.0f};
    }
    return {static_cast<int32_t>(at - logits), best - std::max(greatest(logits, at), greatest(at + 1, end))};
}

}  // namespace loradrop
