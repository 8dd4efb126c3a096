// The control groups of Linux that this process is in, as a container's limits are.
#pragma once

#include <functional>
#include <string>

namespace loradrop {

// Calls visit with the folder of each group of a controller ("memory", "cpu"), and of the groups around it, and whether
// it is of version 2. Elsewhere than on Linux there are none.
void for_each_control_group(const std::string &                                                     controller,
                            const std::function<void(const std::string & folder, bool version_2)> & visit);

}  // namespace loradrop
