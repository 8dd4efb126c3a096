#include "adapter.h"

#include "bindings.h"
#include "errors.h"
#include "log.h"

#include <filesystem>

namespace py = pybind11;

namespace loradrop::bindings {

static llama_adapter_lora * load(const model & base, const std::string & path) {
    if (!std::filesystem::is_regular_file(std::filesystem::u8path(path))) {
        throw model_error(path + ": no such file");
    }
    clear_logged_errors();
    const abort_guard    guard;
    llama_adapter_lora * loaded = llama_adapter_lora_init(base.get(), path.c_str());
    if (!loaded) {
        throw model_error(path + ": cannot be used as a LoRA adapter of " + base.path + ": " + logged_errors());
    }
    return loaded;
}

adapter::adapter(std::shared_ptr<model> base_, const std::string & path) :
    base(std::move(base_)), path(path), weights(base), handle(load(*base, path)) {
}

void register_adapter(py::module_ & m) {
    py::class_<adapter, std::shared_ptr<adapter>>(m, "Adapter", py::is_final(), R"doc(
A LoRA adapter of the usual kind, as llama.cpp's convert_lora_to_gguf.py makes it. Raises ModelError when the file
cannot be used with the model.
)doc")
        .def(py::init<std::shared_ptr<model>, const std::string &>(), py::arg("model"), py::arg("path"))
        .def_readonly("path", &adapter::path);
}

}  // namespace loradrop::bindings
