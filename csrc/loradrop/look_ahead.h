// What is known of a sequence's next tokens before its client has decoded them: drafted by LoRA steps, their logits
// computed by one full batch. Knows nothing of tensors.
#pragma once

#include "loradrop/greedy_choice.h"

#include <cstdint>
#include <optional>
#include <vector>

namespace loradrop {

struct look_ahead_counts {
    uint64_t              rounds  = 0;  // full batches that have checked drafts
    uint64_t              drafted = 0;  // tokens
    std::vector<uint64_t> tried;        // by distance from the token before the first draft, 1 first: how often the
    std::vector<uint64_t> accepted;     // client has come to such a draft, and how often it went on with that token
};

class look_ahead {
  public:
    // k: drafts of a round at most
    explicit look_ahead(uint32_t k);

    // A round has computed the logits of these tokens: row 1 those after the first of them.
    void begin(std::vector<greedy_choice> drafted);

    // The client goes on with this token: the row of its logits when it is the next drafted one.
    std::optional<int32_t> take(int32_t token);

    // The next draft.
    std::optional<greedy_choice> next() const;

    const look_ahead_counts & counts() const { return all; }

  private:
    std::vector<greedy_choice> drafts;
    size_t                     n_taken = 0;
    look_ahead_counts          all;
};

}  // namespace loradrop
