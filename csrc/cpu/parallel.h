// Threads of the OpenMP runtime that torch has already loaded.
#pragma once

namespace r2kd {

// Calls body(part, context) once for each part in [0, parts), on at most `parts` threads, and
// returns when all are done. The split into parts is the caller's, so results do not depend on
// how many threads the runtime grants.
void run_parts(int parts, void (*body)(int part, void* context), void* context);

template <typename Body>
void run_parts(int parts, Body& body) {
  run_parts(
      parts, [](int part, void* context) { (*static_cast<Body*>(context))(part); }, &body);
}

// "GOMP" where the runtime was found, else "none" (everything then runs on the calling thread).
const char* parallel_runtime();

}  // namespace r2kd
