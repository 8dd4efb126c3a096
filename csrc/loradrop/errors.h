// Exceptions of the core; the bindings turn each into a Python exception of the same name.
#pragma once

#include <stdexcept>
#include <string>

namespace loradrop {

// A corrector that cannot be used: names the file, the field, the value, and what to do.
struct corrector_error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// A model whose graph or memory LoRA-Drop cannot serve.
struct unsupported_error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

}  // namespace loradrop
