// How drafts are chosen where the most probable token is not what the client would choose.
#pragma once

#include <cstddef>
#include <cstdint>

namespace loradrop {

class draft_picker {
  public:
    virtual ~draft_picker() = default;

    // The picks that follow are those of the tokens after the client's last one, in order.
    virtual void begin_round() = 0;

    // A token of a LoRA step's logits [n].
    virtual int32_t pick(const float * logits, size_t n) = 0;
};

}  // namespace loradrop
