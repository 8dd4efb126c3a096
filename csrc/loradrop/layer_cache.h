// The KV cache that llama.cpp would give to some of a model's layers: a plain one, or the pair of a model with
// sliding-window layers, one cache for these and one for the others.
#pragma once

#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache.h"
#include "llama-memory.h"

#include <memory>
#include <vector>

struct llama_cparams;
struct llama_model;

namespace loradrop {

// What all caches of a context have in common; copied, since a context's own parameters change while it lives.
struct cache_options {
    cache_options(const llama_memory_params & params, const llama_cparams & cparams);

    ggml_type type_k;
    ggml_type type_v;
    bool      v_trans;
    bool      offload;
    bool      unified;
    bool      swa_full;
    uint32_t  n_seq_max;
    uint32_t  n_ubatch;
};

class layer_cache {
  public:
    // What batches take of each cache.
    using slot_infos = std::vector<llama_kv_cache::slot_info_vec_t>;

    // n_rewind: of a sequence's last tokens, how many may be removed and run again; the windows that they attend to
    // stay in the cache.
    layer_cache(const llama_model & model, const cache_options & options,
                const llama_memory_i::layer_filter_cb & filter, uint32_t n_cells, uint32_t n_rewind);

    // What is done to sequences is done to the memory as a whole.
    llama_memory_i * operator->() const { return memory.get(); }

    // Null when the cache is plain.
    llama_kv_cache_iswa * pair() const { return iswa; }

    // One plain cache, or that of the layers without a window and that of those with one.
    const std::vector<llama_kv_cache *> & parts() const { return caches; }

    // Empty when there is no room.
    slot_infos prepare(const std::vector<llama_ubatch> & ubatches);

    void move_to(layer_cache & larger);

    // Whether a position of the sequence has a cell; windows give none of them away here.
    bool holds(llama_seq_id seq_id, llama_pos pos) const;

    uint32_t n_cells() const { return caches.front()->get_size(); }

    size_t bytes() const;

    // What this cache would take with as many cells as another one, which serves other layers of the same model.
    size_t bytes_with_cells_of(const layer_cache & other) const;

    // The same of the cells that hold a token.
    size_t used_bytes() const { return bytes_with_tokens_of(*this); }
    size_t bytes_with_tokens_of(const layer_cache & other) const;

  private:
    std::unique_ptr<llama_memory_i> memory;
    llama_kv_cache_iswa *           iswa = nullptr;
    std::vector<llama_kv_cache *>   caches;
};

}  // namespace loradrop
