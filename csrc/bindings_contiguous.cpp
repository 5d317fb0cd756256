// The correlation loss of contiguous tensors, for calls whose cost counts: logits of 64 x 100 take two
// kernels of 8 us. Written against CPython itself, since a call through pybind11 with 15 arguments and
// an object in return costs 1.1 us more (docs/performance.md, "small logits").
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>

#include "bindings.h"
#include "cpu/dispatch.h"
#include "r2kd/correlation.h"

namespace py = pybind11;

namespace r2kd {
namespace {

// What a forward pass leaves for its backward pass: the parameters and the statistics, which lie
// behind it in the same object. A tensor for them would cost 1 us.
struct State {
  PyObject_VAR_HEAD
  CorrelationParams params;
  DType student, teacher;
  alignas(8) char stats[1];
};

PyTypeObject* state_type = nullptr;

State* as_state(PyObject* object) { return reinterpret_cast<State*>(object); }

ConstMatrix contiguous(std::uintptr_t address, const State& state, DType dtype) {
  return {as_pointer<const void*>(address), state.params.cols, 1, dtype};
}

// Reads arguments in order. The caller is native.py alone; a wrong one still becomes an exception.
class Arguments {
 public:
  Arguments(const char* name, PyObject* const* values, Py_ssize_t given, Py_ssize_t wanted)
      : values_(values), ok_(given == wanted) {
    if (!ok_) PyErr_Format(PyExc_TypeError, "%s takes %zd arguments, got %zd", name, wanted, given);
  }
  std::int64_t integer() { return read(PyLong_AsLongLong); }
  std::uintptr_t address() { return read(PyLong_AsSize_t); }
  double number() { return read(PyFloat_AsDouble); }
  // No exception so far.
  bool ok() const { return ok_ && PyErr_Occurred() == nullptr; }

 private:
  template <typename Number>
  Number read(Number (*convert)(PyObject*)) {
    return ok_ ? convert(*values_++) : Number{};
  }

  PyObject* const* values_;
  bool ok_;
};

// Sets the exception of a status that is not ok.
bool succeeded(Status status, const char* kernel, const CorrelationParams& params) {
  try {
    check(status, kernel, params.rows, params.cols);
  } catch (py::error_already_set& error) {
    error.restore();
    return false;
  }
  return true;
}

PyObject* forward(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments arguments("correlation_forward_contiguous", values, count, 15);
  CorrelationParams params;
  params.rows = arguments.integer();
  params.cols = arguments.integer();
  params.temperature = arguments.number();
  params.centered = arguments.integer() != 0;
  params.inter_weight = arguments.number();
  params.intra_weight = arguments.number();
  params.eps = arguments.number();
  const std::uintptr_t student = arguments.address();
  const auto student_dtype = static_cast<DType>(arguments.integer());
  const std::uintptr_t teacher = arguments.address();
  const auto teacher_dtype = static_cast<DType>(arguments.integer());
  const std::uintptr_t mask = arguments.address();
  const std::int64_t mask_stride = arguments.integer();
  const std::uintptr_t loss = arguments.address();
  const int threads = static_cast<int>(arguments.integer());
  if (!arguments.ok()) return nullptr;

  const bool in_double = student_dtype == DType::float64 || teacher_dtype == DType::float64;
  const std::int64_t bytes =
      (kRowStats * params.rows + kColStats * params.cols) * (in_double ? 8 : 4);
  PyObject* const object = state_type->tp_alloc(state_type, static_cast<Py_ssize_t>(bytes));
  if (object == nullptr) return nullptr;
  State& state = *as_state(object);
  state.params = params;
  state.student = student_dtype;
  state.teacher = teacher_dtype;
  Status status;
  Py_BEGIN_ALLOW_THREADS;
  status = correlation_forward(params, contiguous(student, state, student_dtype),
                               contiguous(teacher, state, teacher_dtype),
                               as_pointer<const std::uint8_t*>(mask), mask_stride, nullptr,
                               as_pointer<void*>(loss), state.stats, threads);
  Py_END_ALLOW_THREADS;
  if (succeeded(status, "correlation_forward", params)) return object;
  Py_DECREF(object);
  return nullptr;
}

PyObject* backward(PyObject* self, PyObject* const* values, Py_ssize_t count) {
  Arguments arguments("backward", values, count, 7);
  const std::uintptr_t student = arguments.address();
  const std::uintptr_t teacher = arguments.address();
  const std::uintptr_t mask = arguments.address();
  const std::int64_t mask_stride = arguments.integer();
  const std::uintptr_t grad_loss = arguments.address();
  const std::uintptr_t grad_student = arguments.address();
  const int threads = static_cast<int>(arguments.integer());
  if (!arguments.ok()) return nullptr;
  const State& state = *as_state(self);
  Status status;
  Py_BEGIN_ALLOW_THREADS;
  status = correlation_backward(state.params, contiguous(student, state, state.student),
                                contiguous(teacher, state, state.teacher),
                                as_pointer<const std::uint8_t*>(mask), mask_stride,
                                as_pointer<const void*>(grad_loss), state.stats,
                                as_pointer<void*>(grad_student), threads);
  Py_END_ALLOW_THREADS;
  if (!succeeded(status, "correlation_backward", state.params)) return nullptr;
  Py_RETURN_NONE;
}

PyObject* nbytes(PyObject* self, void*) { return PyLong_FromSsize_t(Py_SIZE(self)); }

template <typename Function>
PyCFunction as_method(Function* function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef state_methods[] = {{"backward", as_method(backward), METH_FASTCALL, nullptr},
                               {nullptr, nullptr, 0, nullptr}};
PyGetSetDef state_properties[] = {{"nbytes", nbytes, nullptr, nullptr, nullptr},
                                  {nullptr, nullptr, nullptr, nullptr, nullptr}};
PyType_Slot state_slots[] = {{Py_tp_methods, state_methods}, {Py_tp_getset, state_properties}, {0, nullptr}};
PyType_Spec state_spec = {"r2kd_ext._core.CorrelationState", static_cast<int>(offsetof(State, stats)), 1,
                          Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, state_slots};
PyMethodDef functions[] = {
    {"correlation_forward_contiguous", as_method(forward), METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

void bind_contiguous(py::module_& module) {
  PyObject* const type = PyType_FromSpec(&state_spec);
  if (type == nullptr) throw py::error_already_set();
  state_type = reinterpret_cast<PyTypeObject*>(type);  // kept for the life of the process
  module.attr("CorrelationState") = py::handle(type);
  if (PyModule_AddFunctions(module.ptr(), functions) != 0) throw py::error_already_set();
}

}  // namespace r2kd
