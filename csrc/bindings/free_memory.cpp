#include "free_memory.h"

#if defined(_WIN32)
#    define WIN32_LEAN_AND_MEAN
#    define NOMINMAX
#    include <windows.h>
#elif defined(__APPLE__)
#    include <sys/sysctl.h>
#else
#    include <fstream>
#    include <string>
#endif

namespace loradrop::bindings {

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
            return kib * 1024;
        }
    }
    return 0;
#endif
}

}  // namespace loradrop::bindings
