// Which step a sequence takes next, and what it needs to remember for that. Knows nothing of tensors. llama.cpp takes
// ids of LLAMA_MAX_SEQ sequences in a unified cache, whatever n_seq_max says.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <utility>
#include <vector>

namespace loradrop {

enum class refresh_policy {
    single,  // a refresh runs the present token alone; droppable layers never see the LoRA tokens before it
    refill,  // a refresh runs the LoRA tokens since the last one again, with the present one, in one full batch
    verify,  // LoRA steps draft what may come next, one full batch checks it, and the client gets full steps alone
};

struct lora_token {
    int32_t token;
    int32_t pos;
};

// Positions [first, second).
using position_range = std::pair<int32_t, int32_t>;

struct sequence {
    bool    ready   = false;  // a full step has left its reuse state
    bool    sampled = false;  // the logits of the last token were asked for, so the next one is no prompt
    int32_t anchor  = -1;     // the position of the last full step
    int32_t row     = 0;      // of the sequence's rows of reuse state, the one that the anchor has left
    int32_t n_back  = 0;      // how many positions right before the anchor have left theirs in the rows before

    std::vector<lora_token> lora;           // tokens of LoRA steps since the anchor, oldest first
    size_t                  n_missing = 0;  // of these, at the end, how many a failed refill has left out of the caches
    std::deque<position_range> thinnable;   // what droppable layers give up once it is out of the window

    int32_t n_exact = 0;     // positions, from the first, whose K/V are what a prefill would leave
    bool    exact   = true;  // whether these are all but those of the LoRA tokens

    int32_t last() const { return lora.empty() ? anchor : lora.back().pos; }

    bool is_unbroken() const;  // whether the LoRA tokens' positions follow each other
};

class schedule {
  public:
    // The first positions of a text draw much attention whatever they hold, so they are never thinned.
    static constexpr int32_t n_sinks = 4;

    // n_seq: sequences that can take LoRA steps; others always take full ones.
    schedule(uint32_t k, refresh_policy policy, int32_t kv_window, uint32_t n_seq);

    uint32_t       k() const { return n_lora; }
    refresh_policy policy() const { return refresh; }

    sequence &       at(int32_t seq_id);
    const sequence & at(int32_t seq_id) const;

    bool lora_step_due(int32_t seq_id) const;

    // Tokens that a full step of the sequence has to run again before its new ones.
    bool replays(int32_t seq_id) const { return refresh == refresh_policy::refill && !at(seq_id).lora.empty(); }

    // The books after a step. last: the sequence's last position now. n_rows: of how many positions, this the last of
    // them, it has left rows of reuse state; of more than one only where the logits of all were asked for.
    void after_lora_step(int32_t seq_id, lora_token token, bool sampled);
    void after_full_step(int32_t seq_id, int32_t last, bool sampled, int32_t n_rows = 1);

    // The anchor becomes the next position, whose row is there too.
    void advance(int32_t seq_id);

    // The books after a step that failed with the sequence's cells ending at position last.
    void after_failure(int32_t seq_id, int32_t last);

    // Takes one range that has left the window; false when there is none.
    bool next_thinned(int32_t seq_id, position_range & range);

    // From now on the sequence's tokens are prompt, of which nothing is thinned.
    void count_as_prompt(int32_t seq_id) { at(seq_id).thinnable.clear(); }

    // What the operations on a sequence's cells mean for its schedule. Ranges as in llama_memory_seq_*, but
    // with both ends given.
    void clear();
    void remove(int32_t seq_id, int32_t p0, int32_t p1);
    void copy(int32_t from, int32_t to, int32_t p0, int32_t p1);
    void keep_only(int32_t seq_id);
    void shift(int32_t seq_id, int32_t p0, int32_t p1, int32_t delta);

  private:
    uint32_t              n_lora;
    refresh_policy        refresh;
    int32_t               kv_window;
    uint32_t              n_seq;
    std::vector<sequence> sequences;
};

}  // namespace loradrop
