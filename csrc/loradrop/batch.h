// Reading a llama_batch, whose optional parts may be null, and building one.
#pragma once

#include "llama.h"

#include <vector>

namespace loradrop {

// True when sequence ids and tokens can be looked at; llama.cpp checks the rest.
bool is_well_formed(const llama_batch & batch);

// The sequences that token i belongs to.
std::vector<llama_seq_id> sequences_of(const llama_batch & batch, int32_t i);

// All sequences of a batch, in the order in which they appear.
std::vector<llama_seq_id> distinct_sequences(const llama_batch & batch);

// True when some token belongs to several sequences.
bool has_coupled_sequences(const llama_batch & batch);

// Index of the last token of a sequence.
int32_t last_token_of(const llama_batch & batch, llama_seq_id seq_id);

// True when the logits of token i are asked for; without a list llama.cpp gives those of the last token.
bool wants_output(const llama_batch & batch, int32_t i);

class batch_builder {
  public:
    void    add(llama_token token, llama_pos pos, llama_seq_id seq_id, bool output);
    int32_t size() const { return static_cast<int32_t>(tokens.size()); }

    // The position after the sequence's last one in this batch, or the given one when it has none.
    llama_pos next_pos(llama_seq_id seq_id, llama_pos otherwise) const;

    // Valid until the builder changes.
    llama_batch view();

  private:
    std::vector<llama_token>    tokens;
    std::vector<llama_pos>      positions;
    std::vector<llama_seq_id>   ids;
    std::vector<int32_t>        n_ids;
    std::vector<llama_seq_id *> id_pointers;
    std::vector<int8_t>         outputs;
};

}  // namespace loradrop
