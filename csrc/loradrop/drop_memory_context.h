// One batch on its way through both caches. To the model's graph code it is the context of the kept layers' cache.
#pragma once

#include "llama-kv-cache.h"

#include <memory>

namespace loradrop {

class drop_memory_context : public llama_kv_cache_context {
  public:
    using slot_infos = llama_kv_cache::slot_info_vec_t;

    explicit drop_memory_context(llama_memory_status status);

    // All cells of both caches, for reserving graphs.
    drop_memory_context(llama_kv_cache & kept, llama_kv_cache & droppable, uint64_t generation);

    // LoRA step: only the kept layers' cache takes the tokens.
    drop_memory_context(llama_kv_cache & kept, slot_infos kept_slots, const std::vector<llama_ubatch> & ubatches);

    // Full step: both caches take them.
    drop_memory_context(llama_kv_cache & kept, slot_infos kept_slots, llama_kv_cache & droppable,
                        slot_infos droppable_slots, const std::vector<llama_ubatch> & ubatches, uint64_t generation);

    bool next() override;
    bool apply() override;

    // Null in a LoRA step.
    std::unique_ptr<llama_kv_cache_context> droppable;

    // Changes when the droppable layers' cache is replaced by a larger one.
    uint64_t generation = 0;
};

// Of a memory context that belongs to LoRA-Drop.
const llama_kv_cache_context * droppable_of(const llama_memory_context_i * mctx);
uint64_t                       generation_of(const llama_memory_context_i * mctx);

// Pending work on both caches: position shifts and copies between streams.
class drop_update_context : public llama_memory_context_i {
  public:
    drop_update_context(llama_memory_context_ptr kept, llama_memory_context_ptr droppable);

    bool                 next() override;
    bool                 apply() override;
    const llama_ubatch & get_ubatch() const override;
    llama_memory_status  get_status() const override;

  private:
    llama_memory_context_ptr kept;
    llama_memory_context_ptr droppable;
};

}  // namespace loradrop
