// A loaded model, shared by the contexts and samplers made from it.
#pragma once

#include "forked.h"

#include "llama-cpp.h"

#include <atomic>
#include <memory>
#include <string>
#include <vector>

namespace loradrop::bindings {

class model {
  public:
    // Throws model_error.
    model(const std::string & path, int32_t n_gpu_layers, bool use_mmap, bool use_hugepages);

    ~model();

    model(const model &)             = delete;
    model & operator=(const model &) = delete;

    // Throws model_error when closed.
    llama_model *       get() const;
    const llama_vocab * vocab() const { return llama_model_get_vocab(get()); }

    const std::string path;

    // What needs the weights holds one of these.
    class use {
      public:
        explicit use(std::shared_ptr<model> of) : of(std::move(of)) { ++this->of->n_users; }
        ~use() { --of->n_users; }

        use(const use &)             = delete;
        use & operator=(const use &) = delete;

      private:
        const std::shared_ptr<model> of;
    };

    // Frees the weights. Throws std::runtime_error while they are in use.
    void close();

    // From now on the weights stay in memory for good.
    void leave() { left = true; }

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

    bool cannot_be_freed() const;

    llama_model_ptr  handle;
    std::atomic<int> n_users{0};
    bool             left = false;
    const int        fork = fork_count();
};

}  // namespace loradrop::bindings
