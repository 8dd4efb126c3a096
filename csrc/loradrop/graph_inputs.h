// Inputs that LoRA-Drop adds to a graph.
#pragma once

#include "loradrop/reuse_ops.h"

#include "llama-graph.h"

#include <memory>
#include <vector>

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

struct graph_plan;

// Columns of state of the tokens of a ubatch.
class slot_input : public llm_graph_input_i {
  public:
    // plan: lives as long as the graph
    slot_input(ggml_context * ctx, const graph_plan & plan, const llama_ubatch & ubatch);

    void set_input(const llama_ubatch * ubatch) override;
    bool can_reuse(const llm_graph_params & params) override;

    slot_inputs tensors;

  private:
    int64_t n_kept(const llama_ubatch & ubatch) const;
    bool    keeps_all(const llama_ubatch & ubatch) const;

    std::vector<int32_t> columns_read(const llama_ubatch & ubatch) const;
    std::vector<int64_t> columns_written(const llama_ubatch & ubatch) const;

    const graph_plan & plan;
};

}  // namespace loradrop
