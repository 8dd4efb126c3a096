#include "processors.h"

#include "bindings.h"

#include "loradrop/control_groups.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <string>
#include <thread>

#ifdef __linux__
#    include <sched.h>
#endif

namespace py = pybind11;

namespace loradrop::bindings {

#ifdef __linux__

static constexpr int32_t no_limit = std::numeric_limits<int32_t>::max();

static int32_t by_affinity() {
    cpu_set_t allowed;
    return sched_getaffinity(0, sizeof(allowed), &allowed) == 0 ? CPU_COUNT(&allowed) : no_limit;
}

static int32_t processors_of(double quota, double period) {
    return quota > 0 && period > 0 ? std::max(1, static_cast<int32_t>(std::ceil(quota / period))) : no_limit;
}

// cpu.max of a control group: "max 100000", or a quota and its period.
static int32_t by_quota(const std::string & folder) {
    std::ifstream unified(folder + "/cpu.max");
    double        quota  = 0;
    double        period = 0;
    if (unified >> quota >> period) {
        return processors_of(quota, period);
    }
    std::ifstream quota_file(folder + "/cpu.cfs_quota_us");
    std::ifstream period_file(folder + "/cpu.cfs_period_us");
    return quota_file >> quota && period_file >> period ? processors_of(quota, period) : no_limit;
}

static int32_t by_control_groups() {
    int32_t least = no_limit;
    for_each_control_group("cpu", [&](const std::string & folder, bool) { least = std::min(least, by_quota(folder)); });
    return least;
}

int32_t usable_processors() {
    const auto there = static_cast<int32_t>(std::max(1u, std::thread::hardware_concurrency()));
    return std::max(1, std::min({there, by_affinity(), by_control_groups()}));
}

#else

int32_t usable_processors() {
    return static_cast<int32_t>(std::max(1u, std::thread::hardware_concurrency()));
}

#endif

void register_processors(py::module_ & m) {
    m.def("usable_processors", usable_processors,
          "Processors that this process may use, by its affinity and its control group's quota.");
}

}  // namespace loradrop::bindings
