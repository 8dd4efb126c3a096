#pragma once

namespace loradrop {

// Gives freed memory back to the system where the C library would keep it (glibc does, of all but the largest blocks).
void give_back_freed_memory();

}  // namespace loradrop
