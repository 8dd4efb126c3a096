#include "loradrop/kv_access.h"

#include "loradrop/hooks.h"

#include "ggml-backend.h"
#include "llama-kv-cache.h"

#include <vector>

namespace loradrop {

struct kv_access {
    static void move_cells(llama_kv_cache & from, llama_kv_cache & to) {
        for (uint32_t s = 0; s < from.n_stream; ++s) {
            to.v_cells[s].set(0, from.v_cells[s]);
            to.v_heads[s] = from.v_heads[s];
        }
        to.sc_info = std::move(from.sc_info);

        for (size_t i = 0; i < from.layers.size(); ++i) {
            for (uint32_t s = 0; s < from.n_stream; ++s) {
                move_rows(from.layers[i].k_stream[s], to.layers[i].k_stream[s]);
                if (!from.layers[i].v_stream[s]) {
                    continue;
                }
                if (from.v_trans) {
                    move_transposed(from.layers[i].v_stream[s], to.layers[i].v_stream[s]);
                } else {
                    move_rows(from.layers[i].v_stream[s], to.layers[i].v_stream[s]);
                }
            }
        }
    }

    static void set_rewind(llama_kv_cache & cache, llama_pos n) { cache.n_rewind = n; }

    static bool holds(const llama_kv_cache & cache, llama_seq_id seq_id, llama_pos pos) {
        const llama_kv_cells & cells = cache.v_cells[cache.seq_to_stream[seq_id]];
        for (uint32_t i = 0; i < cells.size(); ++i) {
            if (cells.pos_in(i, pos, pos + 1) && cells.seq_has(i, seq_id)) {
                return true;
            }
        }
        return false;
    }

    static size_t bytes_with_tokens_of(const llama_kv_cache & cache, const llama_kv_cache & other) {
        size_t n_used = 0;
        for (const llama_kv_cells & cells : other.v_cells) {
            n_used += cells.get_used();
        }
        return cache_bytes(cache) / cache.get_size() / cache.n_stream * n_used;
    }

  private:
    // One row for each cell: the old rows are the first of the new ones.
    static void move_rows(const ggml_tensor * from, ggml_tensor * to) {
        std::vector<uint8_t> data(from->ne[1] * from->nb[1]);
        ggml_backend_tensor_get(from, data.data(), 0, data.size());
        ggml_backend_tensor_set(to, data.data(), 0, data.size());
    }

    // One column for each cell: [n_embd, n_cells] in shape, but cell by cell within each channel in memory.
    static void move_transposed(const ggml_tensor * from, ggml_tensor * to) {
        const size_t         element   = ggml_element_size(from);
        const size_t         old_cells = from->ne[1] * element;
        const size_t         new_cells = to->ne[1] * element;
        std::vector<uint8_t> data(from->ne[0] * old_cells);
        ggml_backend_tensor_get(from, data.data(), 0, data.size());
        for (int64_t channel = 0; channel < from->ne[0]; ++channel) {
            ggml_backend_tensor_set(to, data.data() + channel * old_cells, channel * new_cells, old_cells);
        }
    }
};

void move_cells(llama_kv_cache & from, llama_kv_cache & to) {
    kv_access::move_cells(from, to);
}

void set_rewind(llama_kv_cache & cache, llama_pos n) {
    kv_access::set_rewind(cache, n);
}

bool holds(const llama_kv_cache & cache, llama_seq_id seq_id, llama_pos pos) {
    return kv_access::holds(cache, seq_id, pos);
}

size_t cache_bytes(const llama_kv_cache & cache) {
    size_t total = 0;
    for (const auto & [buft, size] : cache.memory_breakdown()) {
        total += size;
    }
    return total;
}

size_t bytes_with_tokens_of(const llama_kv_cache & cache, const llama_kv_cache & other) {
    return kv_access::bytes_with_tokens_of(cache, other);
}

}  // namespace loradrop
