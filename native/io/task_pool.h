// Threads for single jobs of the image and file functions: decode one image, write one checkpoint. Never libuv's.
#pragma once

#include <functional>

namespace effnet::io {

// Runs the job on a thread of the pool, which grows with demand up to one thread per CPU (at least 4: jobs also wait
// for disks). Jobs of a process that exits are dropped. A job must not throw. Where the system gives not one thread, it
// runs before this returns.
void run_task(std::function<void()> job);

}  // namespace effnet::io
