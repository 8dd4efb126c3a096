#include "loradrop/batch.h"

#include "llama-cparams.h"

#include <algorithm>

namespace loradrop {

static constexpr llama_seq_id max_seq_id = LLAMA_MAX_SEQ - 1;

std::vector<llama_seq_id> sequences_of(const llama_batch & batch, int32_t i) {
    if (!batch.seq_id) {
        return {0};
    }
    const int32_t n = batch.n_seq_id ? batch.n_seq_id[i] : 1;
    return {batch.seq_id[i], batch.seq_id[i] + n};
}

bool is_well_formed(const llama_batch & batch) {
    if (batch.n_tokens <= 0 || (!batch.token && !batch.embd)) {
        return false;
    }
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        const auto ids = sequences_of(batch, i);
        if (ids.empty() ||
            std::any_of(ids.begin(), ids.end(), [](llama_seq_id s) { return s < 0 || s > max_seq_id; })) {
            return false;
        }
    }
    return true;
}

std::vector<llama_seq_id> distinct_sequences(const llama_batch & batch) {
    std::vector<llama_seq_id> out;
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        for (const llama_seq_id s : sequences_of(batch, i)) {
            if (std::find(out.begin(), out.end(), s) == out.end()) {
                out.push_back(s);
            }
        }
    }
    return out;
}

bool has_coupled_sequences(const llama_batch & batch) {
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        if (sequences_of(batch, i).size() > 1) {
            return true;
        }
    }
    return false;
}

int32_t last_token_of(const llama_batch & batch, llama_seq_id seq_id) {
    for (int32_t i = batch.n_tokens - 1; i >= 0; --i) {
        const auto ids = sequences_of(batch, i);
        if (std::find(ids.begin(), ids.end(), seq_id) != ids.end()) {
            return i;
        }
    }
    return -1;
}

bool wants_output(const llama_batch & batch, int32_t i) {
    return batch.logits ? batch.logits[i] != 0 : i == batch.n_tokens - 1;
}

void batch_builder::add(llama_token token, llama_pos pos, llama_seq_id seq_id, bool output) {
    tokens.push_back(token);
    positions.push_back(pos);
    ids.push_back(seq_id);
    n_ids.push_back(1);
    outputs.push_back(output ? 1 : 0);
}

llama_pos batch_builder::next_pos(llama_seq_id seq_id, llama_pos otherwise) const {
    for (size_t i = ids.size(); i-- > 0;) {
        if (ids[i] == seq_id) {
            return positions[i] + 1;
        }
    }
    return otherwise;
}

llama_batch batch_builder::view() {
    id_pointers.clear();
    for (llama_seq_id & id : ids) {
        id_pointers.push_back(&id);
    }
    return {size(), tokens.data(), nullptr, positions.data(), n_ids.data(), id_pointers.data(), outputs.data()};
}

}  // namespace loradrop
