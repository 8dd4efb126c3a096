// Moves the contents of a KV cache into a larger one.
#pragma once

class llama_kv_cache;

namespace loradrop {

// `to` is empty, serves the same layers with the same types and streams, and has at least as many cells.
void move_cells(llama_kv_cache & from, llama_kv_cache & to);

}  // namespace loradrop
