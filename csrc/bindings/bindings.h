// One register_* for each bound class.
#pragma once

#include <pybind11/pybind11.h>

namespace loradrop::bindings {

void register_errors(pybind11::module_ & m);
void register_gil(pybind11::module_ & m);
void register_processors(pybind11::module_ & m);
void register_log(pybind11::module_ & m);
void register_model(pybind11::module_ & m);
void register_adapter(pybind11::module_ & m);
void register_corrector(pybind11::module_ & m);
void register_context(pybind11::module_ & m);
void register_draft_length(pybind11::module_ & m);
void register_sampler(pybind11::module_ & m);
void register_quantize(pybind11::module_ & m);
void register_cpu(pybind11::module_ & m);
void register_cpu_products(pybind11::module_ & m);
void register_cpu_attention(pybind11::module_ & m);
void register_machine_floor(pybind11::module_ & m);

}  // namespace loradrop::bindings
