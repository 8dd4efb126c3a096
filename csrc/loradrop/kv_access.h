// What the engine does to the private parts of a KV cache.
#pragma once

#include "llama.h"

#include <cstddef>
#include <cstdint>

class llama_kv_cache;

namespace loradrop {

// Moves the contents of a cache into a larger one. `to` is empty, serves the same layers with the same types and
// streams, and has at least as many cells.
void move_cells(llama_kv_cache & from, llama_kv_cache & to);

// Keeps the windows of the last n + 1 tokens of each sequence instead of the last one's, so that n tokens can be
// removed and run again.
void set_rewind(llama_kv_cache & cache, llama_pos n);

bool holds(const llama_kv_cache & cache, llama_seq_id seq_id, llama_pos pos);

size_t cache_bytes(const llama_kv_cache & cache);

// Bytes that the cells of a cache would take that hold a token in another one, of the same streams; or in itself.
size_t bytes_with_tokens_of(const llama_kv_cache & cache, const llama_kv_cache & other);

}  // namespace loradrop
