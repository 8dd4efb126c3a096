// The reuse rules as ggml operations.
#pragma once

#include "loradrop/reuse_runs.h"

struct ggml_cgraph;
struct ggml_context;

namespace loradrop {

// Which columns of state a ubatch reads and writes; the tensors are inputs of the graph, null where not needed.
struct slot_inputs {
    ggml_tensor * read  = nullptr;  // i32 [n_tokens], of each token; null: column 0, there is but one
    ggml_tensor * write = nullptr;  // i64 [n_kept], of each token whose state is kept
    ggml_tensor * kept  = nullptr;  // i32 [n_kept], these tokens; null: all
};

// Refresh step: keeps of the run's input x and output y, both [n_embd, n_tokens], what later LoRA steps use.
void build_refresh(ggml_context * ctx, ggml_cgraph * gf, const reuse_run & run, const slot_inputs & slots,
                   ggml_tensor * x, ggml_tensor * y);

// LoRA step: the run's output [n_embd, n_tokens] without running it.
ggml_tensor * build_lora_step(ggml_context * ctx, ggml_cgraph * gf, const reuse_run & run, const slot_inputs & slots,
                              ggml_tensor * x);

}  // namespace loradrop
