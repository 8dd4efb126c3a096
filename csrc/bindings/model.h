// A loaded model, shared by the contexts and samplers made from it.
#pragma once

#include "llama-cpp.h"

#include <memory>
#include <string>
#include <vector>

namespace loradrop::bindings {

class model {
  public:
    // Throws model_error.
    model(const std::string & path, int32_t n_gpu_layers, bool use_mmap, bool use_hugepages);

    llama_model *       get() const { return handle.get(); }
    const llama_vocab * vocab() const { return llama_model_get_vocab(get()); }

    const std::string path;

    std::vector<llama_token> tokenize(const std::string & text, bool add_special, bool parse_special) const;
    std::string              detokenize(const std::vector<llama_token> & tokens, bool special) const;
    std::string              piece(llama_token token, bool special) const;

    // A tensor as it lies in memory, quantised as it is. Throws std::out_of_range.
    std::string tensor_bytes(const std::string & name) const;

    // Throws std::out_of_range.
    void check_token(llama_token token) const;

  private:
    // Throws model_error.
    void check_tokenizer() const;

    llama_model_ptr handle;
};

}  // namespace loradrop::bindings
