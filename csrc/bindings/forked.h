// Processes that fork() has made: they have this one's memory, but none of its threads.
#pragma once

namespace loradrop::bindings {

// How many forks have made this process since the module was loaded; what was made at another count has no threads
// here.
int fork_count();

// To be called once, when the module is loaded.
void count_forks();

}  // namespace loradrop::bindings
