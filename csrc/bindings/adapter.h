// A LoRA adapter of the usual kind: it adds to the model's matrices, wherever they run.
#pragma once

#include "model.h"

#include <memory>
#include <string>

namespace loradrop::bindings {

class adapter {
  public:
    // Throws model_error.
    adapter(std::shared_ptr<model> base, const std::string & path);

    llama_adapter_lora * get() const { return handle.get(); }

    const std::shared_ptr<model> base;
    const std::string            path;

  private:
    const model::use       weights;  // outlives the handle
    llama_adapter_lora_ptr handle;
};

}  // namespace loradrop::bindings
