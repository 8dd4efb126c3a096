// What this machine can do at best, for what is measured beside it.
#include "bindings.h"
#include "gil.h"
#include "processors.h"

#include "cpu/machine_floor.h"
#include "loradrop/free_memory.h"

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>

#include <pybind11/stl.h>

namespace py = pybind11;

namespace loradrop::bindings {

static py::tuple machine_floor(int64_t n_threads) {
    if (n_threads < 1) {
        throw py::value_error("n_threads=" + std::to_string(n_threads) + ": give an integer of at least 1");
    }
    // as a context does: more threads than processors would only wait for each other
    const int64_t n_processors = usable_processors();
    check_free_memory(cpu::machine_floor_buffer, "measuring how quickly memory is read");
    cpu::machine_floor floor{};
    {
        const gil_released release;
        floor = cpu::measure_machine_floor(static_cast<int>(std::min(n_threads, n_processors)));
    }
    const bool multiplies = floor.products_per_second > 0;
    return py::make_tuple(floor.bytes_per_second,
                          multiplies ? std::optional<double>(floor.products_per_second) : std::nullopt);
}

void register_machine_floor(py::module_ & m) {
    m.def("machine_floor", machine_floor, py::arg("n_threads"),
          "Bytes that so many threads together read from memory in a second, in pages of 4 KiB, and products of bytes "
          "that the CPU kernels in use could compute in a second if they did nothing else (\"llama.cpp\": the best "
          "there are), None where there are no such kernels. The best of several tries; takes a second or so and 512 "
          "MiB. More threads than there are processors take all. Raises ValueError, RuntimeError or MemoryError.");
}

}  // namespace loradrop::bindings
