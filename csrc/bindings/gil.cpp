#include "gil.h"

#include "bindings.h"
#include "forked.h"

#include <atomic>
#include <chrono>
#include <thread>

namespace py = pybind11;

namespace loradrop::bindings {

using namespace std::chrono_literals;

static constexpr auto most_wait = 5s;  // for work that does not look whether it is to stop, as reading a file

static std::atomic<bool> ends{false};
static std::thread::id   ending;         // the thread that ends the interpreter
static std::atomic<int>  n_away{0};      // threads without the lock, or about to get it back
static int               away_fork = 0;  // the fork_count() that n_away belongs to

bool interpreter_ends() {
    return ends && std::this_thread::get_id() != ending;
}

[[noreturn]] static void stay() {
    while (true) {
        std::this_thread::sleep_for(1h);
    }
}

static void note_away(int change) {
    if (away_fork != fork_count()) {  // the threads that were counted are not here
        away_fork = fork_count();
        n_away    = 0;
    }
    n_away += change;
}

gil_released::gil_released() {
    note_away(+1);
    state = PyEval_SaveThread();
    if (interpreter_ends()) {
        note_away(-1);
        stay();
    }
}

gil_released::~gil_released() {
    if (interpreter_ends()) {
        note_away(-1);
        stay();
    }
    PyEval_RestoreThread(state);
    note_away(-1);
}

// Runs before Python begins to end its threads, so that those that still come back do so in time.
static void end() {
    ending           = std::this_thread::get_id();
    ends             = true;
    const auto until = std::chrono::steady_clock::now() + most_wait;
    note_away(0);
    PyThreadState * state = PyEval_SaveThread();
    while (n_away > 0 && std::chrono::steady_clock::now() < until) {
        std::this_thread::sleep_for(1ms);
    }
    PyEval_RestoreThread(state);
}

void register_gil(py::module_ & m) {
    count_forks();
    m.def("_end", end, "For atexit.");
    py::module_::import("atexit").attr("register")(m.attr("_end"));
}

}  // namespace loradrop::bindings
