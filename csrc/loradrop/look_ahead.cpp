#include "loradrop/look_ahead.h"

#include <utility>

namespace loradrop {

look_ahead::look_ahead(uint32_t k) {
    all.tried.resize(k);
    all.accepted.resize(k);
}

void look_ahead::begin(std::vector<greedy_choice> drafted) {
    drafts  = std::move(drafted);
    n_taken = 0;
    ++all.rounds;
    all.drafted += drafts.size();
}

std::optional<greedy_choice> look_ahead::next() const {
    return n_taken < drafts.size() ? std::optional(drafts[n_taken]) : std::nullopt;
}

std::optional<int32_t> look_ahead::take(int32_t token) {
    if (n_taken == drafts.size()) {
        return std::nullopt;
    }
    ++all.tried[n_taken];
    if (token != drafts[n_taken].token) {
        return std::nullopt;
    }
    ++all.accepted[n_taken];
    ++n_taken;
    return static_cast<int32_t>(n_taken);
}

}  // namespace loradrop
