#include "bindings.h"

#include "llama.h"

PYBIND11_MODULE(_core, m) {
    using namespace loradrop::bindings;

    m.doc() = "Native core of loradrop: llama.cpp with LoRA-Drop decoding.";

    register_errors(m);
    register_gil(m);
    register_processors(m);
    register_log(m);
    llama_backend_init();
    register_model(m);
    register_adapter(m);
    register_corrector(m);
    register_context(m);
    register_draft_length(m);
    register_sampler(m);
    register_quantize(m);
    register_cpu(m);
    register_cpu_products(m);
    register_cpu_attention(m);
    register_machine_floor(m);
}
