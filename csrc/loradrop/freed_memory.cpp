#include "loradrop/freed_memory.h"

#include <cstdlib>  // where __GLIBC__ comes from

#if defined(__GLIBC__)
#    include <malloc.h>
#endif

namespace loradrop {

void give_back_freed_memory() {
#if defined(__GLIBC__)
    malloc_trim(0);
#endif
}

}  // namespace loradrop
