// Inputs that LoRA-Drop adds to a graph.
#pragma once

#include "loradrop/reuse_ops.h"

#include "llama-graph.h"

#include <memory>

namespace loradrop {

// Indices and masks of the droppable layers' cells; follows their cache when it grows.
class droppable_attention_input : public llm_graph_input_i {
  public:
    // generation: that of the cache which the graph's views point into
    droppable_attention_input(std::unique_ptr<llm_graph_input_i> input, uint64_t generation);

    void set_input(const llama_ubatch * ubatch) override;
    bool can_reuse(const llm_graph_params & params) override;

  private:
    std::unique_ptr<llm_graph_input_i> input;
    uint64_t                           generation;
};

// Slots of the sequences of a ubatch.
class slot_input : public llm_graph_input_i {
  public:
    slot_input(ggml_context * ctx, const reuse_runs & runs, const llama_ubatch & ubatch, bool lora_step,
               bool single_slot);

    void set_input(const llama_ubatch * ubatch) override;
    bool can_reuse(const llm_graph_params & params) override;

    slot_inputs tensors;

  private:
    const reuse_runs & runs;
    bool               lora_step;
};

}  // namespace loradrop
