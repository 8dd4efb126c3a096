#include "loradrop/graph_inputs.h"

#include "loradrop/drop_memory_context.h"

#include "ggml-backend.h"
#include "llama-batch.h"

#include <algorithm>
#include <vector>

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

slot_input::slot_input(ggml_context * ctx, const reuse_runs & runs, const llama_ubatch & ubatch, bool lora_step,
                       bool single_slot) :
    runs(runs), lora_step(lora_step) {
    const auto add = [ctx](ggml_type type, int64_t n, const char * name) {
        ggml_tensor * t = ggml_new_tensor_1d(ctx, type, n);
        ggml_set_input(t);
        ggml_set_name(t, name);
        return t;
    };
    if (lora_step && !single_slot) {
        tensors.read = add(GGML_TYPE_I32, ubatch.n_tokens, "lora_drop_read");
    }
    if (!lora_step && !is_one_token(ubatch)) {
        tensors.last = add(GGML_TYPE_I32, ubatch.n_seqs_unq, "lora_drop_last");
    }
    tensors.write = add(GGML_TYPE_I64, ubatch.n_seqs_unq, "lora_drop_write");
}

bool slot_input::can_reuse(const llm_graph_params & params) {
    return tensors.write->ne[0] == params.ubatch.n_seqs_unq &&
           (lora_step || (tensors.last == nullptr) == is_one_token(params.ubatch)) &&
           (!tensors.read || tensors.read->ne[0] == params.ubatch.n_tokens);
}

// A rule without state leaves its slot inputs out of the graph, and then they have no memory.
template <typename T>
static void set_values(ggml_tensor * t, const std::vector<T> & values) {
    if (t && t->buffer) {
        ggml_backend_tensor_set(t, values.data(), 0, ggml_nbytes(t));
    }
}

void slot_input::set_input(const llama_ubatch * ubatch) {
    std::vector<int32_t> read(ubatch->n_tokens);
    std::vector<int32_t> last(ubatch->n_seqs_unq);
    std::vector<int64_t> write(ubatch->n_seqs_unq);

    for (uint32_t s = 0; s < ubatch->n_seqs_unq; ++s) {
        write[s] = runs.slot_of(ubatch->seq_id_unq[s]);
    }
    for (uint32_t i = 0; i < ubatch->n_tokens; ++i) {
        read[i] = static_cast<int32_t>(runs.slot_of(ubatch->seq_id[i][0]));
        for (int32_t j = 0; j < ubatch->n_seq_id[i]; ++j) {
            last[ubatch->seq_idx[ubatch->seq_id[i][j]]] = static_cast<int32_t>(i);
        }
    }
    if (lora_step) {
        std::copy(read.begin(), read.end(), write.begin());  // one token for each sequence, in the order of the tokens
    }
    set_values(tensors.read, read);
    set_values(tensors.last, last);
    set_values(tensors.write, write);
}

}  // namespace loradrop
