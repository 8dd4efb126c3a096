// The dropped runs on their devices: corrector weights, and per sequence what a refresh step leaves behind.
#pragma once

#include "loradrop/drop_plan.h"

#include "ggml-cpp.h"

#include <memory>
#include <optional>
#include <vector>

struct llama_model;

namespace loradrop {

// One run. Weights that the corrector lacks are null. A state tensor has a column for each row of each slot.
//
// What depends on the anchor alone is computed once in the refresh step: of the segment rule's products with
// f = [n(x_t); n(y_r); n(x_r)], the columns that meet the last two parts (_anchor) are applied there.
struct reuse_run {
    drop_run   span;
    reuse_rule rule;
    float      scale;

    ggml_tensor * a           = nullptr;  // [n_embd, rank]
    ggml_tensor * a_anchor    = nullptr;  // [2 n_embd, rank]
    ggml_tensor * b           = nullptr;  // [rank, n_embd]
    ggml_tensor * gate        = nullptr;  // [n_embd, n_ff]
    ggml_tensor * gate_anchor = nullptr;  // [2 n_embd, n_ff]
    ggml_tensor * up          = nullptr;  // [n_embd, n_ff]
    ggml_tensor * up_anchor   = nullptr;  // [2 n_embd, n_ff]
    ggml_tensor * down        = nullptr;  // [n_ff, n_embd]
    ggml_tensor * carry       = nullptr;  // [n_embd], g

    ggml_tensor * state       = nullptr;  // [n_embd, n_columns], y_{t-1} or y_r
    ggml_tensor * state_carry = nullptr;  // [n_embd, n_columns], g (y_r - x_r)
    ggml_tensor * state_a     = nullptr;  // [rank, n_columns]
    ggml_tensor * state_gate  = nullptr;  // [n_ff, n_columns]
    ggml_tensor * state_up    = nullptr;  // [n_ff, n_columns]

    std::vector<ggml_tensor *> weights() const;
    std::vector<ggml_tensor *> states() const;
};

class reuse_runs {
  public:
    // n_slots: sequences that can take LoRA steps. n_rows: positions of which a sequence keeps the state; where these
    // are several, LoRA steps leave theirs in one more row, the last. One more column takes what no sequence will read.
    // Throws std::runtime_error when a device lacks the memory.
    reuse_runs(const llama_model & model, const corrector & c, const std::vector<drop_run> & spans, uint32_t n_slots,
               uint32_t n_rows);

    const std::vector<reuse_run> & runs() const { return all; }

    // Null when layer il runs in every step.
    const reuse_run * run_of(int32_t il) const;

    // The run whose first layer follows il, whose input is therefore layer il's output; null when there is none.
    const reuse_run * run_after(int32_t il) const;

    uint32_t n_slots() const { return slots; }

    uint32_t n_rows() const { return rows; }

    bool has_slot(int32_t seq_id) const { return seq_id >= 0 && static_cast<uint32_t>(seq_id) < slots; }

    // The column of a sequence's row, or the spare one when the sequence has no slot.
    uint32_t column_of(int32_t seq_id, int32_t row) const;

    // Where LoRA steps leave their state.
    uint32_t running_column_of(int32_t seq_id) const;

    // The devices have to be idle.
    void copy_column(uint32_t from, uint32_t to) const;

    // Tells apart correctors of one shape. Computed when it is first asked for; the devices have to be idle.
    uint64_t weight_hash() const;

    size_t weight_bytes() const { return n_weight_bytes; }

    size_t state_bytes() const { return n_state_bytes; }

  private:
    std::vector<reuse_run>               all;
    uint32_t                             slots;
    uint32_t                             rows;
    std::vector<ggml_context_ptr>        ctxs;
    std::vector<ggml_backend_buffer_ptr> bufs;
    size_t                               n_weight_bytes = 0;
    size_t                               n_state_bytes  = 0;
    mutable std::optional<uint64_t>      hash;

    friend class reuse_run_builder;
};

}  // namespace loradrop
