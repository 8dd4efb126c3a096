// Logits of all tokens, as samplers take them.
#pragma once

#include "llama.h"

#include <vector>

namespace loradrop::bindings {

class candidates {
  public:
    candidates(const float * logits, size_t n) : all(n) {
        for (size_t i = 0; i < n; ++i) {
            all[i] = {static_cast<llama_token>(i), logits[i], 0.0f};
        }
        view = {all.data(), all.size(), -1, false};
    }

    candidates(const candidates &)             = delete;
    candidates & operator=(const candidates &) = delete;

    llama_token selected() const { return view.data[view.selected].id; }

    std::vector<llama_token_data> all;
    llama_token_data_array        view;
};

}  // namespace loradrop::bindings
