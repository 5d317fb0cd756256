// Python binding of the Winograd convolution.
#include "bindings.h"
#include "r2kd/winograd.h"

namespace py = pybind11;

namespace r2kd {

void bind_winograd(py::module_& module) {
  module.def("winograd_conv2d",
             [](std::int64_t batch, std::int64_t height, std::int64_t width, std::int64_t channels,
                std::int64_t out_channels, std::uintptr_t x, std::uintptr_t weight, std::uintptr_t bias,
                std::uintptr_t other, bool relu, std::uintptr_t y, int threads) {
               Status status;
               {
                 const py::gil_scoped_release release;
                 status = winograd_conv2d({batch, height, width, channels, out_channels, relu},
                                          as_pointer<const float*>(x), as_pointer<const float*>(weight),
                                          as_pointer<const float*>(bias), as_pointer<const float*>(other),
                                          as_pointer<float*>(y), threads);
               }
               check(status, "winograd_conv2d");
             });
}

}  // namespace r2kd
