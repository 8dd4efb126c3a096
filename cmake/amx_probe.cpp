// Multiplies two tiles of ones. Succeeds at once where the compiler does not target AMX.
#if !defined(__AMX_INT8__) || !defined(__linux__)
int main() {
    return 0;
}
#else
#    include <immintrin.h>
#    include <sys/syscall.h>
#    include <unistd.h>

#    include <cstdint>
#    include <cstring>

struct tile_config {
    uint8_t  palette;
    uint8_t  start_row;
    uint8_t  reserved[14];
    uint16_t bytes_per_row[16];
    uint8_t  rows[16];
};

static_assert(sizeof(tile_config) == 64, "the hardware reads 64 bytes");

// As in code that uses tiles: a local that only the instruction reads, which is what gets lost.
__attribute__((noinline)) static void configure() {
    alignas(64) tile_config config = {};
    config.palette                 = 1;
    for (int i = 0; i < 3; ++i) {
        config.rows[i]          = 16;
        config.bytes_per_row[i] = 64;
    }
    _tile_loadconfig(&config);
}

int main() {
    constexpr long request_permission = 0x1023;
    constexpr long tile_data          = 18;
    if (syscall(SYS_arch_prctl, request_permission, tile_data) != 0) {
        return 0;  // the system does not grant tiles, and ggml will not use them
    }
    int8_t  ones[16 * 64];
    int32_t sums[16 * 16] = {};
    std::memset(ones, 1, sizeof(ones));
    configure();
    _tile_loadd(1, ones, 64);
    _tile_loadd(2, ones, 64);
    _tile_zero(0);
    _tile_dpbssd(0, 1, 2);
    _tile_stored(0, sums, 64);
    _tile_release();
    for (const int32_t sum : sums) {
        if (sum != 64) {
            return 1;
        }
    }
    return 0;
}
#endif
