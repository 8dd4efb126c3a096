// The output head of drafts. A draft needs the best token and not a distribution over all of them, and computing that
// is up to a third of a LoRA step: so of the head's rows only those of tokens that may well come next. One half are the
// first of the vocabulary, which tokenizers number by how frequent they are. The other half are the tokens that were
// decoded last and those that were nearly as probable, for a text's rare words come in it again.
#pragma once

#include "ggml-cpp.h"
#include "llama.h"

#include <memory>
#include <vector>

class llm_graph_result;
struct llama_model;

namespace loradrop {

// An eighth of a large vocabulary, all of a small one.
uint32_t usual_draft_rows(uint32_t n_vocab);

class draft_head {
  public:
    // Null when these are no fewer rows than the model's, when the model's cannot be read one by one, or when a bias is
    // added to its product.
    // Throws std::runtime_error when the device lacks the memory.
    static std::unique_ptr<draft_head> make(const llama_model & model, uint32_t n_rows);

    // A token gets a row, instead of the one that has had its row longest. The devices have to be idle.
    void add(llama_token token);

    // So does each that is not much less probable than the best by these logits [n_vocab] of the full model.
    void add_likely(const float * logits);

    // Puts this head in the place of the model's in a graph that is complete; logits that are more than the head's
    // product, scaled or capped, stay as they are.
    void replace(ggml_context * ctx, ggml_cgraph * gf, llm_graph_result & res) const;

    // What such a graph has computed for one token, as logits of all tokens [n_vocab]: -inf where there is no row.
    // Nothing when the graph has the model's own head.
    void read(ggml_cgraph * gf, float * logits);

    size_t n_bytes() const;

  private:
    draft_head(const llama_model & model, const ggml_tensor & source, std::vector<llama_token> fixed, size_t n_rows);

    void put(size_t row, llama_token token);

    const ggml_tensor *      head;     // the model's, as its graph has it
    const ggml_tensor *      source;   // where rows are read: the head, or the embedding that it is tied to
    std::vector<llama_token> tokens;   // by row
    std::vector<int32_t>     rows;     // by token, -1: none
    size_t                   n_fixed;  // rows that stay
    size_t                   next;     // to be replaced
    std::vector<float>       of_rows;  // logits
    std::vector<uint8_t>     one_row;
    ggml_context_ptr         ctx;
    ggml_backend_buffer_ptr  buf;
    ggml_tensor *            weights = nullptr;  // [n_embd, n_rows]
};

}  // namespace loradrop
