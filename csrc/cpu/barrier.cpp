// Threads of a graph wait for each other: for a moment on the processor, and then asleep.
//
// A moment is what they wait on a machine of their own. Where others want the processors too, the thread that is waited
// for may not be running at all, and one that polls for it takes the time that it needs.
#include "cpu/hooks.h"

#include <atomic>
#include <chrono>
#include <climits>
#include <thread>

#ifdef __linux__
#    include <linux/futex.h>
#    include <sys/syscall.h>
#    include <unistd.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#    include <immintrin.h>
#endif

using clock_type = std::chrono::steady_clock;

static constexpr auto polled         = std::chrono::microseconds(1000);
static constexpr int  polls_per_look = 64;  // a look at the clock takes as long as several

static std::atomic<int> n_asleep{0};  // in all pools together

static const std::atomic<int> & as_atomic(const void * value) {
    static_assert(sizeof(std::atomic<int>) == sizeof(int) && std::atomic<int>::is_always_lock_free);
    return *static_cast<const std::atomic<int> *>(value);
}

static void relax() {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_pause();
#elif defined(__aarch64__) && !defined(_MSC_VER)
    __asm__ volatile("yield" ::: "memory");
#endif
}

static void sleep_while(const void * value, int before) {
#ifdef __linux__
    ++n_asleep;
    syscall(SYS_futex, value, FUTEX_WAIT_PRIVATE, before, nullptr, nullptr, 0);  // returns at once if it has changed
    --n_asleep;
#else
    (void)value;
    (void)before;
    std::this_thread::yield();
#endif
}

void loradrop_cpu_wait(const void * value, int before) {
    const std::atomic<int> & now   = as_atomic(value);
    const auto               until = clock_type::now() + polled;
    while (now.load(std::memory_order_relaxed) == before) {
        for (int i = 0; i < polls_per_look && now.load(std::memory_order_relaxed) == before; ++i) {
            relax();
        }
        if (clock_type::now() >= until) {
            while (now.load(std::memory_order_relaxed) == before) {
                sleep_while(value, before);
            }
        }
    }
}

void loradrop_cpu_wake(const void * value) {
#ifdef __linux__
    if (n_asleep > 0) {
        syscall(SYS_futex, value, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
    }
#else
    (void)value;
#endif
}
