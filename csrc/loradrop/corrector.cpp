#include "loradrop/corrector.h"

#include "loradrop/hooks.h"

#include "ggml.h"

namespace loradrop {

std::string layer_tensor_name(int32_t layer, const char * part) {
    return "blk." + std::to_string(layer) + ".lora_drop_" + part + ".weight";
}

std::string segment_tensor_name(size_t segment, const char * part) {
    return "lora_drop.seg." + std::to_string(segment) + "." + part + ".weight";
}

bool is_corrector_tensor(const std::string & name) {
    return name.find("lora_drop") != std::string::npos;
}

const ggml_tensor * corrector::find(const std::string & name) const {
    return weights ? ggml_get_tensor(weights.get(), name.c_str()) : nullptr;
}

size_t corrector::n_bytes() const {
    return n_data;
}

}  // namespace loradrop
