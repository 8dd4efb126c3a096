#include "loradrop/free_memory.h"

#include "loradrop/control_groups.h"

#include <stdexcept>
#include <string>

#if defined(_WIN32)
#    define WIN32_LEAN_AND_MEAN
#    define NOMINMAX
#    include <windows.h>
#elif defined(__APPLE__)
#    include <sys/sysctl.h>
#else
#    include <algorithm>
#    include <fstream>
#    include <limits>
#endif

namespace loradrop {

#if !defined(_WIN32) && !defined(__APPLE__)

static constexpr uint64_t no_limit = std::numeric_limits<uint64_t>::max();

static uint64_t read_number(const std::string & path, uint64_t otherwise) {
    std::ifstream file(path);
    uint64_t      value;
    return file >> value ? value : otherwise;
}

// Bytes of files that a group's memory holds, such as a mapped model's; they make room for what needs it.
static uint64_t file_bytes(const std::string & stat, const std::string & prefix) {
    std::ifstream file(stat);
    std::string   key;
    uint64_t      value;
    uint64_t      total = 0;
    while (file >> key >> value) {
        if (key == prefix + "active_file" || key == prefix + "inactive_file") {
            total += value;
        }
    }
    return total;
}

static uint64_t left_in_group(const std::string & folder, bool version_2) {
    const uint64_t limit = read_number(folder + (version_2 ? "/memory.max" : "/memory.limit_in_bytes"), no_limit);
    const uint64_t usage = read_number(folder + (version_2 ? "/memory.current" : "/memory.usage_in_bytes"), 0);
    const uint64_t files = file_bytes(folder + "/memory.stat", version_2 ? "" : "total_");
    return limit - std::min(limit, usage - std::min(usage, files));
}

static uint64_t left_in_groups() {
    uint64_t left = no_limit;
    for_each_control_group("memory", [&](const std::string & folder, bool version_2) {
        left = std::min(left, left_in_group(folder, version_2));
    });
    return left;
}

#endif

uint64_t free_memory() {
#if defined(_WIN32)
    MEMORYSTATUSEX status;
    status.dwLength = sizeof(status);
    return GlobalMemoryStatusEx(&status) ? status.ullAvailPhys : 0;
#elif defined(__APPLE__)
    uint64_t total = 0;  // macOS compresses and purges; only the total is a firm bound
    size_t   size  = sizeof(total);
    return sysctlbyname("hw.memsize", &total, &size, nullptr, 0) == 0 ? total : 0;
#else
    std::ifstream meminfo("/proc/meminfo");
    std::string   key;
    uint64_t      kib;
    std::string   unit;
    while (meminfo >> key >> kib >> unit) {
        if (key == "MemAvailable:") {
            return std::max<uint64_t>(1, std::min(kib * 1024, left_in_groups()));
        }
    }
    return 0;
#endif
}

void check_free_memory(uint64_t need, const std::string & what) {
    const uint64_t have = free_memory();
    if (have > 0 && need > have) {
        throw std::runtime_error(what + " needs " + std::to_string(need >> 20) + " MiB, " + std::to_string(have >> 20) +
                                 " MiB are free");
    }
}

}  // namespace loradrop
