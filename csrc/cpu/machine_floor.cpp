#include "cpu/machine_floor.h"

#include "cpu/byte_products.h"
#include "cpu/instruction_set.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#ifdef __linux__
#    include <sys/mman.h>
#endif

namespace loradrop::cpu {

static constexpr int    n_tries   = 6;
static constexpr size_t page_size = 4096;

static double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Seconds from when the first thread begins work(ith) to when the last has ended it.
template <typename Work>
static double seconds_of(int n_threads, const Work & work) {
    std::atomic<int>         ready{0};
    std::vector<double>      begin(n_threads);
    std::vector<double>      end(n_threads);
    std::vector<std::thread> threads;
    const auto               run = [&](int ith) {
        ++ready;
        while (ready < n_threads) {
            std::this_thread::yield();
        }
        begin[ith] = now();
        work(ith);
        end[ith] = now();
    };
    for (int ith = 1; ith < n_threads; ++ith) {
        threads.emplace_back(run, ith);
    }
    run(0);
    for (std::thread & thread : threads) {
        thread.join();
    }
    return *std::max_element(end.begin(), end.end()) - *std::min_element(begin.begin(), begin.end());
}

// Linux may give large pages, which the file of a model does not have.
static void keep_pages_small([[maybe_unused]] char * data, [[maybe_unused]] size_t size) {
#ifdef __linux__
    madvise(data, size, MADV_NOHUGEPAGE);
#endif
}

static std::atomic<uint64_t> result;  // a sum that nobody reads would not be computed

template <bool prefetch>
static void read_all(const char * data, size_t size) {
    constexpr size_t n     = 16;
    constexpr size_t ahead = 4096;

    uint64_t sums[n] = {};
    for (size_t i = 0; i < size; i += sizeof(sums)) {
#if defined(__GNUC__) || defined(__clang__)
        if (prefetch) {
            __builtin_prefetch(data + i + ahead);
            __builtin_prefetch(data + i + ahead + 64);
        }
#endif
        uint64_t words[n];
        std::memcpy(words, data + i, sizeof(words));
        for (size_t j = 0; j < n; ++j) {
            sums[j] += words[j];
        }
    }
    for (const uint64_t sum : sums) {
        result += sum;
    }
}

static double bytes_per_second(int n_threads) {
    const std::unique_ptr<char[]> memory(new char[machine_floor_buffer + page_size]);
    char * data = memory.get() + page_size - reinterpret_cast<uintptr_t>(memory.get()) % page_size;
    keep_pages_small(data, machine_floor_buffer);

    const size_t share = machine_floor_buffer / page_size / n_threads * page_size;
    seconds_of(n_threads, [&](int ith) { std::memset(data + ith * share, 1, share); });
    double least = 1e9;
    for (int i = 0; i < n_tries; ++i) {
        const auto part =
            i % 2 ? read_all<true> : read_all<false>;  // some processors need the prefetch, others suffer from it
        least = std::min(least, seconds_of(n_threads, [&](int ith) { part(data + ith * share, share); }));
    }
    return static_cast<double>(share) * n_threads / least;
}

using byte_products = int64_t (*)(int64_t rounds);

static byte_products find_byte_products() {
#ifdef LORADROP_X86_KERNELS
    instruction_set set = current_instruction_set();
    if (set == instruction_set::none) {
        set = available_instruction_sets().back();
    }
    switch (set) {
        case instruction_set::avx2:
            return avx2::multiply_bytes;
        case instruction_set::avx_vnni:
            return avx_vnni::multiply_bytes;
        case instruction_set::avx512:
            return avx512::multiply_bytes;
        case instruction_set::none:
            break;
    }
#endif
    return nullptr;
}

static double products_per_second(int n_threads) {
    const byte_products multiply = find_byte_products();
    if (!multiply) {
        return 0;
    }
    constexpr int64_t    rounds = 2'000'000;  // some milliseconds
    std::vector<int64_t> products(n_threads);
    double               most = 0;
    for (int i = 0; i < n_tries; ++i) {
        const double seconds = seconds_of(n_threads, [&](int ith) { products[ith] = multiply(rounds); });
        most                 = std::max(most, static_cast<double>(products[0]) * n_threads / seconds);
    }
    return most;
}

machine_floor measure_machine_floor(int n_threads) {
    return {bytes_per_second(n_threads), products_per_second(n_threads)};
}

}  // namespace loradrop::cpu
