// One batch on its way through both caches. To the model's graph code it is the context of the kept layers' cache.
#pragma once

#include "loradrop/layer_cache.h"

#include <memory>

namespace loradrop {

// What a batch's context knows beyond its cells in the kept layers' cache.
struct droppable_part {
    virtual ~droppable_part() = default;

    // Of the kept context's class; null in a LoRA step.
    llama_memory_context_ptr droppable;

    // Changes when the droppable layers' cache is replaced by a larger one.
    uint64_t generation = 0;
};

// kept_context: what llama.cpp's graph code takes it for, by the kind of cache.
template <typename kept_context>
class drop_memory_context : public kept_context, public droppable_part {
  public:
    using kept_context::kept_context;

    bool next() override {
        if (droppable) {
            droppable->next();
        }
        return kept_context::next();
    }

    bool apply() override {
        const bool done = kept_context::apply();
        return (!droppable || droppable->apply()) && done;
    }
};

llama_memory_context_ptr failed_context();

// All cells of both caches, for reserving graphs.
llama_memory_context_ptr full_context(layer_cache & kept, layer_cache & droppable, uint64_t generation);

// LoRA step: only the kept layers' cache takes the tokens.
llama_memory_context_ptr lora_context(layer_cache & kept, layer_cache::slot_infos slots,
                                      const std::vector<llama_ubatch> & ubatches);

// Full step: both caches take them.
llama_memory_context_ptr full_context(layer_cache & kept, layer_cache::slot_infos kept_slots, layer_cache & droppable,
                                      layer_cache::slot_infos           droppable_slots,
                                      const std::vector<llama_ubatch> & ubatches, uint64_t generation);

// Of a memory context that belongs to LoRA-Drop.
const droppable_part & droppable_of(const llama_memory_context_i * mctx);

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
