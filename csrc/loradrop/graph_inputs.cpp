#include "loradrop/graph_inputs.h"

#include "loradrop/drop_memory_context.h"
#include "loradrop/step_graph.h"

#include "ggml-backend.h"
#include "llama-batch.h"

namespace loradrop {

droppable_attention_input::droppable_attention_input(std::unique_ptr<llm_graph_input_i> input, uint64_t generation) :
    input(std::move(input)), generation(generation) {
}

void droppable_attention_input::set_input(const llama_ubatch * ubatch) {
    input->set_input(ubatch);
}

bool droppable_attention_input::can_reuse(const llm_graph_params & params) {
    const droppable_part & part = droppable_of(params.mctx);
    if (!part.droppable || part.generation != generation) {
        return false;
    }
    llm_graph_params of_droppable = params;
    of_droppable.mctx             = part.droppable.get();
    return input->can_reuse(of_droppable);
}

// One token of one sequence is its own last token.
static bool is_one_token(const llama_ubatch & ubatch) {
    return ubatch.n_tokens == 1 && ubatch.n_seqs_unq == 1;
}

slot_input::slot_input(ggml_context * ctx, const graph_plan & plan, const llama_ubatch & ubatch) : plan(plan) {
    const auto add = [ctx](ggml_type type, int64_t n, const char * name) {
        ggml_tensor * t = ggml_new_tensor_1d(ctx, type, n);
        ggml_set_input(t);
        ggml_set_name(t, name);
        return t;
    };
    if (plan.lora_step && !plan.single_column) {
        tensors.read = add(GGML_TYPE_I32, ubatch.n_tokens, "lora_drop_read");
    }
    if (!keeps_all(ubatch)) {
        tensors.kept = add(GGML_TYPE_I32, n_kept(ubatch), "lora_drop_kept");
    }
    tensors.write = add(GGML_TYPE_I64, n_kept(ubatch), "lora_drop_write");
}

// Of a LoRA step, which has one token of each sequence, and where the plan says so; else of each sequence's last token.
bool slot_input::keeps_all(const llama_ubatch & ubatch) const {
    return plan.lora_step || plan.keeps_all || is_one_token(ubatch);
}

int64_t slot_input::n_kept(const llama_ubatch & ubatch) const {
    return keeps_all(ubatch) ? ubatch.n_tokens : ubatch.n_seqs_unq;
}

bool slot_input::can_reuse(const llm_graph_params & params) {
    return tensors.write->ne[0] == n_kept(params.ubatch) && (tensors.kept == nullptr) == keeps_all(params.ubatch) &&
           (!tensors.read || tensors.read->ne[0] == params.ubatch.n_tokens);
}

// A rule without state leaves its slot inputs out of the graph, and then they have no memory.
template <typename T>
static void set_values(ggml_tensor * t, const std::vector<T> & values) {
    if (t && t->buffer) {
        ggml_backend_tensor_set(t, values.data(), 0, ggml_nbytes(t));
    }
}

std::vector<int32_t> slot_input::columns_read(const llama_ubatch & ubatch) const {
    const bool           follows_itself = plan.runs->runs().front().rule == reuse_rule::previous_state;
    std::vector<int32_t> out;
    for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
        const llama_seq_id s = ubatch.seq_id[i][0];
        const sequence &   q = plan.sched->at(s);
        out.push_back(static_cast<int32_t>(follows_itself && !q.lora.empty() ? plan.runs->running_column_of(s)
                                                                             : plan.runs->column_of(s, q.row)));
    }
    return out;
}

std::vector<int64_t> slot_input::columns_written(const llama_ubatch & ubatch) const {
    std::vector<int64_t> out;
    if (plan.lora_step) {
        for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
            out.push_back(plan.runs->running_column_of(ubatch.seq_id[i][0]));
        }
    } else if (plan.keeps_all) {
        for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
            out.push_back(plan.runs->column_of(ubatch.seq_id[i][0], static_cast<int32_t>(i)));
        }
    } else {
        for (uint32_t s = 0; s < ubatch.n_seqs_unq; ++s) {
            out.push_back(plan.runs->column_of(ubatch.seq_id_unq[s], 0));
        }
    }
    return out;
}

static std::vector<int32_t> last_tokens(const llama_ubatch & ubatch) {
    std::vector<int32_t> out(ubatch.n_seqs_unq);
    for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
        for (int32_t j = 0; j < ubatch.n_seq_id[i]; ++j) {
            out[ubatch.seq_idx[ubatch.seq_id[i][j]]] = static_cast<int32_t>(i);
        }
    }
    return out;
}

void slot_input::set_input(const llama_ubatch * ubatch) {
    if (tensors.read) {
        set_values(tensors.read, columns_read(*ubatch));
    }
    if (tensors.kept) {
        set_values(tensors.kept, last_tokens(*ubatch));
    }
    set_values(tensors.write, columns_written(*ubatch));
}

}  // namespace loradrop
