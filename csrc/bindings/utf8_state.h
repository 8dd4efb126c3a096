// Whether bytes go on as UTF-8: the shortest form of each character, no surrogates, nothing above U+10FFFF.
#pragma once

#include <cstdint>
#include <string>

namespace loradrop::bindings {

class utf8_state {
  public:
    // Takes some bytes; false, and what is left is of no use, where they cannot be or become UTF-8.
    bool take(const std::string & bytes) {
        for (const char c : bytes) {
            if (!take(static_cast<uint8_t>(c))) {
                return false;
            }
        }
        return true;
    }

  private:
    bool take(uint8_t byte) {
        if (missing > 0) {
            const bool fits = least <= byte && byte <= most;
            least           = 0x80;
            most            = 0xbf;
            --missing;
            return fits;
        }
        if (byte < 0x80) {
            return true;
        }
        if (byte < 0xc2 || byte > 0xf4) {
            return false;
        }
        missing = byte < 0xe0 ? 1 : byte < 0xf0 ? 2 : 3;
        least   = byte == 0xe0 ? 0xa0 : byte == 0xf0 ? 0x90 : 0x80;
        most    = byte == 0xed ? 0x9f : byte == 0xf4 ? 0x8f : 0xbf;
        return true;
    }

    int     missing = 0;  // bytes of the present character
    uint8_t least   = 0x80;
    uint8_t most    = 0xbf;
};

}  // namespace loradrop::bindings
