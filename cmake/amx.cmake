# ggml keeps weights for AMX tiles in a layout of its own, with kernels of its own. They are quick for long prompts, but
# not those of csrc/cpu: small batches cost more, and give a token other bits than it gets alone. So AMX is off unless
# asked for; and then only where it works, for some compilers (GCC before 12.4 and 13.3) lose the set-up of the tiles,
# and the program dies of SIGILL.

function(loradrop_probe_amx)
    if (NOT DEFINED LORADROP_AMX_WORKS)
        # not by CMAKE_FLAGS, which no longer adds to the flags in CMake 4.4
        try_run(exit_code compiled "${CMAKE_BINARY_DIR}/amx_probe" "${PROJECT_SOURCE_DIR}/cmake/amx_probe.cpp"
                COMPILE_DEFINITIONS -march=native -O3)
        if (compiled AND exit_code EQUAL 0)
            set(works ON)
        else ()
            set(works OFF)
            message(WARNING "AMX tiles do not work with ${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION} "
                            "on this machine (probe: ${exit_code}); the build goes on without AMX. "
                            "GCC 12.4, 13.3 or later, or Clang, would allow it.")
        endif ()
        set(LORADROP_AMX_WORKS "${works}" CACHE BOOL "A program that sets up AMX tiles runs")
    endif ()
endfunction()

function(loradrop_set_amx)
    if (CMAKE_CROSSCOMPILING OR MSVC OR NOT CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
        return()
    endif ()
    if (LORADROP_AMX)
        loradrop_probe_amx()
        if (LORADROP_AMX_WORKS)
            return()
        endif ()
    endif ()
    include(CheckCXXCompilerFlag)
    check_cxx_compiler_flag(-mno-amx-tile LORADROP_KNOWS_AMX)
    if (LORADROP_KNOWS_AMX)
        add_compile_options("$<$<COMPILE_LANGUAGE:C,CXX>:-mno-amx-tile;-mno-amx-int8;-mno-amx-bf16>")
    endif ()
endfunction()
