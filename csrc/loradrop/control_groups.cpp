#include "loradrop/control_groups.h"

#include <fstream>

namespace loradrop {

void for_each_control_group(const std::string &                                                     controller,
                            const std::function<void(const std::string & folder, bool version_2)> & visit) {
    std::ifstream groups("/proc/self/cgroup");
    for (std::string line; std::getline(groups, line);) {
        // "0::/path" in version 2, "4:cpu,memory:/path" in version 1
        const size_t first  = line.find(':');
        const size_t second = line.find(':', first + 1);
        if (first == std::string::npos || second == std::string::npos) {
            continue;
        }
        const std::string controllers = line.substr(first + 1, second - first - 1);
        const bool        version_2   = controllers.empty();
        if (!version_2 && ("," + controllers + ",").find("," + controller + ",") == std::string::npos) {
            continue;
        }
        // the groups around it have limits too, and inside a container the path may begin outside of what is mounted
        const std::string root = version_2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/" + controller;
        const std::string path = line.substr(second + 1);
        for (size_t end = path.size(); end != std::string::npos && end > 0; end = path.rfind('/', end - 1)) {
            visit(root + path.substr(0, end), version_2);
        }
        visit(root, version_2);
    }
}

}  // namespace loradrop
