// The kernels of csrc/cpu: which there are, which are used, and one product or attention by itself.
#include "bindings.h"

#include "cpu/instruction_set.h"

#include <pybind11/stl.h>

#include <cstdlib>
#include <string>
#include <vector>

namespace py = pybind11;

namespace loradrop::bindings {

static std::vector<std::string> cpu_kernels() {
    std::vector<std::string> names;
    for (const cpu::instruction_set set : cpu::available_instruction_sets()) {
        names.push_back(cpu::name_of(set));
    }
    return names;
}

static void use_cpu_kernels(const std::string & name) {
    std::string names;
    for (const cpu::instruction_set set : cpu::available_instruction_sets()) {
        if (cpu::name_of(set) == name) {
            cpu::use_instruction_set(set);
            return;
        }
        names += (names.empty() ? "" : ", ") + std::string(cpu::name_of(set));
    }
    throw py::value_error("CPU kernels \"" + name + "\": this processor and this build have " + names);
}

void register_cpu(py::module_ & m) {
    m.def("cpu_kernels", cpu_kernels,
          "Sets of CPU kernels that this processor and this build have, the one used by default last; \"llama.cpp\" "
          "stands for llama.cpp's own.");
    m.def(
        "current_cpu_kernels", [] { return cpu::name_of(cpu::current_instruction_set()); },
        "The set of CPU kernels in use.");
    m.def("use_cpu_kernels", use_cpu_kernels, py::arg("name"),
          "Use another set of CPU kernels from now on, in the whole process. No decode may be running.");

    if (const char * wanted = std::getenv("LORADROP_CPU_KERNELS"); wanted && *wanted) {
        try {
            use_cpu_kernels(wanted);
        } catch (const py::value_error & e) {
            throw py::import_error("environment variable LORADROP_CPU_KERNELS: " + std::string(e.what()));
        }
    }
}

}  // namespace loradrop::bindings
