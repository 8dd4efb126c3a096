// Python's lock around native work, also when the interpreter ends meanwhile.
#pragma once

#include <Python.h>

namespace loradrop::bindings {

// Gives the lock away while it lives. A thread that the end of the interpreter meets in here, other than the one that
// ends it, never comes back: Python would unwind its stack, and frames of C++ that cannot be unwound end the process.
class gil_released {
  public:
    gil_released();
    ~gil_released();

    gil_released(const gil_released &)             = delete;
    gil_released & operator=(const gil_released &) = delete;

  private:
    PyThreadState * state;
};

// Whether this thread's work is to stop, for the interpreter ends and nobody will see what comes of it.
bool interpreter_ends();

}  // namespace loradrop::bindings
