# Some compilers (GCC before 12.4 and 13.3) lose the set-up of AMX tiles, and the program dies of SIGILL. The probe
# runs the set-up with the flags of a native build; where it fails, AMX is switched off.

function(loradrop_probe_amx)
    if (CMAKE_CROSSCOMPILING OR MSVC OR NOT CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
        return()
    endif ()
    if (NOT DEFINED LORADROP_AMX_WORKS)
        try_run(exit_code compiled "${CMAKE_BINARY_DIR}/amx_probe" "${PROJECT_SOURCE_DIR}/cmake/amx_probe.cpp"
                COMPILE_DEFINITIONS -march=native -O3)  # CMAKE_FLAGS has no way to add to the flags in CMake 4.4
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
    if (NOT LORADROP_AMX_WORKS)
        add_compile_options("$<$<COMPILE_LANGUAGE:C,CXX>:-mno-amx-tile;-mno-amx-int8;-mno-amx-bf16>")
    endif ()
endfunction()
