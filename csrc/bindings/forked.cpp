#include "forked.h"

#ifndef _WIN32
#    include <pthread.h>
#endif

namespace loradrop::bindings {

static int forks = 0;

int fork_count() {
    return forks;
}

void count_forks() {
#ifndef _WIN32
    pthread_atfork(nullptr, nullptr, [] { ++forks; });
#endif
}

}  // namespace loradrop::bindings
