// What the KV caches of a context will take, as llama.cpp and drop_memory size them; known before it is made.
#pragma once

#include <cstdint>

struct llama_context_params;
struct llama_model;

namespace loradrop {

// Bytes of the caches as the context begins; droppable layers' cells become more as text is decoded.
uint64_t initial_cache_bytes(const llama_model & model, const llama_context_params & params);

}  // namespace loradrop
