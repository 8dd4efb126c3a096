// What a context owns when it decodes with LoRA-Drop.
#pragma once

#include "loradrop/draft_head.h"
#include "loradrop/draft_length.h"
#include "loradrop/draft_picker.h"
#include "loradrop/drop_memory.h"
#include "loradrop/graph_variants.h"
#include "loradrop/hooks.h"
#include "loradrop/look_ahead.h"
#include "loradrop/loradrop.h"
#include "loradrop/step_graph.h"

#include "ggml-cpp.h"

#include <array>
#include <optional>

struct llama_batch;
struct llama_context;

namespace loradrop {

enum step_kind { full_step = 0, lora_step = 1 };

struct engine_stats {
    std::array<uint64_t, 2> steps         = {};  // decoded batches, by kind
    std::array<uint64_t, 2> tokens        = {};  // tokens in them, replays not counted
    std::array<uint64_t, 2> graph_builds  = {};  // graphs that could not be reused
    uint64_t                replayed      = 0;   // tokens that a refill ran again
    step_kind               last_step     = full_step;
    size_t                  weight_bytes  = 0;   // corrector
    size_t                  state_bytes   = 0;   // reuse state
    size_t                  head_bytes    = 0;   // output head of drafts
    std::array<size_t, 2>   compute_bytes = {};  // compute buffers
    look_ahead_counts       ahead;
};

class engine {
  public:
    engine(llama_context & ctx, const lora_drop_params & params);

    llama_memory_i * create_memory(const llama_memory_params & params);

    int  decode(const llama_batch & batch);
    void reserve();
    void enter_variant() { variants.enter(); }
    void count_build() { ++counts.graph_builds[entered_kind()]; }

    const graph_plan * plan() const { return &plans[entered_kind()]; }

    const drop_memory & memory() const { return *mem; }

    engine_stats stats() const;

    const std::vector<reuse_run> & runs() const { return all_runs.runs(); }

    // The token that a LoRA step has drafted after the sequence's last one, if the logits after it are there.
    std::optional<llama_token> drafted(llama_seq_id seq_id) const;

    // How many of a sequence's tokens, from the first, have K/V in the caches that a prefill of them would leave.
    int32_t exact_tokens(llama_seq_id seq_id) const;

    // From now on a sequence's tokens are prompt, whose K/V droppable layers keep.
    void count_as_prompt(llama_seq_id seq_id) { sched.count_as_prompt(seq_id); }

    // Chooses drafts from now on; null: the most probable token is drafted.
    void set_picker(std::shared_ptr<draft_picker> chooser);

    // The engine of a context; null when the context decodes in full.
    static const engine * of(const llama_context & ctx);
    static engine *       of(llama_context & ctx);

  private:
    graph_variants::built new_variant() const;

    // A graph of its own for full steps of so many tokens that all leave rows; false when there is no memory for it.
    bool make_rows_variant(size_t n_tokens);

    // Makes room for the largest full step with the droppable layers' cache as it is; false when there is none.
    bool reserve_full_step();
    bool reserve_rows(size_t n_tokens);

    step_kind entered_kind() const { return variants.entered() == lora_variant ? lora_step : full_step; }

    bool leaves_rows(const llama_batch & batch) const;

    bool is_lora_batch(const llama_batch & batch) const;
    bool can_extend(const llama_batch & batch, const std::vector<llama_seq_id> & replaying) const;
    int  decode_lora(const llama_batch & batch);
    int  decode_full(const llama_batch & batch);
    int  run_pass(const llama_batch & batch, step_kind kind);
    int  run_with_replays(const llama_batch & batch, const std::vector<llama_seq_id> & replaying);
    int  run_replays_alone(const std::vector<llama_seq_id> & replaying);

    // engine_verify.cpp
    bool can_look_ahead(const llama_batch & batch) const;
    int  decode_verify(const llama_batch & batch);
    int  decode_round(llama_token token, llama_seq_id s, const llama_batch & batch);
    int  decode_alone(const llama_batch & batch);
    int  draft(llama_seq_id s, lora_token after, std::vector<greedy_choice> & drafts);
    void show_row(int32_t row);

    greedy_choice choose_draft() const;

    llama_context &               ctx;
    const lora_drop_params        params;
    reuse_runs                    all_runs;
    schedule                      sched;
    std::unique_ptr<draft_head>   head;  // null: drafts are chosen by the model's
    std::array<graph_plan, 2>     plans;
    look_ahead                    ahead;
    std::optional<draft_length>   length;  // where k is but the most that a round drafts
    std::shared_ptr<draft_picker> picker;
    llama_seq_id                  last_alone = -1;       // the sequence of the last batch, if it was of one alone
    drop_memory *                 mem        = nullptr;  // owned by the context

    graph_variants variants;

    engine_stats counts;
};

}  // namespace loradrop
