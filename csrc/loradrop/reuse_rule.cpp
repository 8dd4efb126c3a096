#include "loradrop/reuse_rule.h"

#include <array>
#include <utility>

namespace loradrop {

static const std::array<std::pair<const char *, reuse_rule>, 4> rules = {{
    {"previous-state", reuse_rule::previous_state},
    {"anchor-state", reuse_rule::anchor_state},
    {"anchor-delta", reuse_rule::anchor_delta},
    {"segment", reuse_rule::segment},
}};

bool parse_reuse_rule(const std::string & name, reuse_rule & rule) {
    for (const auto & [known, value] : rules) {
        if (name == known) {
            rule = value;
            return true;
        }
    }
    return false;
}

const char * reuse_rule_name(reuse_rule rule) {
    for (const auto & [name, value] : rules) {
        if (value == rule) {
            return name;
        }
    }
    return "";
}

}  // namespace loradrop
