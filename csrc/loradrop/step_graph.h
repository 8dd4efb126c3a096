// Derives the two variants of a model's graph while llama.cpp's own model code builds it, and notes the tensors that
// are captured.
#pragma once

#include "loradrop/hooks.h"
#include "loradrop/reuse_ops.h"
#include "loradrop/schedule.h"
#include "loradrop/state_capture.h"

#include "llama-graph.h"

#include <map>

namespace loradrop {

class draft_head;

// What a graph is built for. One object for each variant lives as long as its context.
struct graph_plan {
    const reuse_runs * runs;
    const schedule *   sched;
    bool               lora_step;
    bool               single_column;      // there is but one column of state, which needs no look-up
    bool               keeps_all = false;  // full step of one sequence: every token leaves a row of state, not the last
    const draft_head * head      = nullptr;  // of LoRA steps; null: the model's
};

class step_graph {
  public:
    // capture: null when nothing is captured
    step_graph(const llm_graph_params & params, state_capture * capture);

    const llama_memory_context_i * droppable_cells() const;
    void                           add_droppable_input(std::unique_ptr<llm_graph_input_i> input);

    // Input: the class that the model's graph code uses, for kept and droppable layers alike.
    template <typename Input>
    Input * attention_input(Input * kept, int il) const {
        return run_of(il) ? static_cast<Input *>(droppable_input) : kept;
    }

    bool          skips_layer(int il) const;
    ggml_tensor * unused_attention(ggml_tensor * wo, ggml_tensor * q_cur, ggml_tensor * v_cur);
    ggml_tensor * layer_output(ggml_tensor * cur, int il);

    // Throws unsupported_error when the model does not have the structure that the rewrite relies on.
    void finish();

  private:
    const reuse_run *   run_of(int il) const;
    const slot_inputs & slots();
    ggml_tensor *       run_output(ggml_tensor * cur, int il);
    void                check_layer_output(const ggml_tensor * cur, int il) const;

    const graph_plan *           plan;  // null: every layer runs
    const llm_graph_params &     params;
    llm_graph_result *           res;
    ggml_context *               ctx;
    ggml_cgraph *                gf;
    captured_tensors *           captured        = nullptr;
    llm_graph_input_i *          droppable_input = nullptr;
    slot_inputs                  slot_tensors;
    bool                         has_slots = false;
    std::map<int, ggml_tensor *> run_inputs;  // by the run's first layer
    size_t                       n_runs_done = 0;
};

}  // namespace loradrop
