#pragma once

#include <cstdint>

struct llama_model;

namespace loradrop {

// Bytes of the model's weights that the system has in huge pages now; 0 where it does not tell. It may move more of
// them there later. What asks for them while a model is loaded is advise_huge_pages (hooks.h).
uint64_t huge_page_bytes(const llama_model & model);

}  // namespace loradrop
