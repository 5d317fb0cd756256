// Plain types that cross every boundary of the compiled core: bindings, CPU kernels, CUDA kernels.
// No torch header is included anywhere in the core; tensors arrive as pointers, sizes and strides.
#pragma once

#include <cstddef>
#include <cstdint>

namespace r2kd {

enum class Status : int {
  ok = 0,
  out_of_memory = 1,  // the CPU workspace could not be allocated
};

// The order is part of the interface to Python (backends/native.py).
enum class DType : int { float32 = 0, float64 = 1, bfloat16 = 2, float16 = 3 };

// A 2-D tensor that the kernel only reads. Strides count elements and may be 0 (expanded).
struct ConstMatrix {
  const void* data;  // [rows, cols], not null unless rows * cols == 0
  std::int64_t row_stride;
  std::int64_t col_stride;
  DType dtype;
};

}  // namespace r2kd
