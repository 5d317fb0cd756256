// What the files of bindings share. Tensors arrive as addresses, sizes and strides.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "r2kd/types.h"

namespace r2kd {

template <typename Pointer>
Pointer as_pointer(std::uintptr_t address) {
  return reinterpret_cast<Pointer>(address);
}

inline ConstMatrix matrix(std::uintptr_t address, std::int64_t row_stride, std::int64_t col_stride,
                          int dtype) {
  return {as_pointer<const void*>(address), row_stride, col_stride, static_cast<DType>(dtype)};
}

// Raises MemoryError unless the status of `kernel` is ok; `of` says what its workspace was for.
inline void check(Status status, const char* kernel, const std::string& of = "") {
  switch (status) {
    case Status::ok:
      return;
    case Status::out_of_memory:
      break;
  }
  const std::string message = std::string(kernel) + ": no memory for the workspace" + of;
  PyErr_SetString(PyExc_MemoryError, message.c_str());
  throw pybind11::error_already_set();
}

// The same of a matrix rows x cols.
inline void check(Status status, const char* kernel, std::int64_t rows, std::int64_t cols) {
  if (status == Status::ok) return;
  check(status, kernel, " of " + std::to_string(rows) + " x " + std::to_string(cols) + " logits");
}

// bindings_contiguous.cpp, bindings_cuda.cpp, bindings_cuda_rank.cpp, bindings_cuda_sparse.cpp,
// bindings_moments.cpp, bindings_rank.cpp, bindings_sparse.cpp, bindings_winograd.cpp
void bind_contiguous(pybind11::module_& module);
void bind_cuda(pybind11::module_& module);
void bind_cuda_rank(pybind11::module_& module);
void bind_cuda_sparse(pybind11::module_& module);
void bind_moments(pybind11::module_& module);
void bind_rank(pybind11::module_& module);
void bind_sparse(pybind11::module_& module);
void bind_winograd(pybind11::module_& module);

}  // namespace r2kd
