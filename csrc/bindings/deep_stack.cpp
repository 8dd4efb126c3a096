#include "deep_stack.h"

#include <exception>
#include <stdexcept>
#include <string>

#ifndef _WIN32
#    include <pthread.h>
#endif

namespace loradrop::bindings {

#ifdef _WIN32

void with_stack(size_t, const std::function<void()> & work) {
    work();
}

#else

namespace {

struct job {
    const std::function<void()> & work;
    std::exception_ptr            failure;
};

}  // namespace

static void * run(void * of) {
    auto * self = static_cast<job *>(of);
    try {
        self->work();
    } catch (...) {
        self->failure = std::current_exception();
    }
    return nullptr;
}

void with_stack(size_t n_bytes, const std::function<void()> & work) {
    job            self{work, nullptr};
    pthread_t      thread;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    const bool fits    = pthread_attr_setstacksize(&attributes, (n_bytes + 0xffff) / 0x10000 * 0x10000) == 0;
    const bool started = fits && pthread_create(&thread, &attributes, run, &self) == 0;
    pthread_attr_destroy(&attributes);
    if (!started) {
        throw std::runtime_error("no room for a stack of " + std::to_string(n_bytes >> 20) + " MiB");
    }
    pthread_join(thread, nullptr);
    if (self.failure) {
        std::rethrow_exception(self.failure);
    }
}

#endif

}  // namespace loradrop::bindings
