// What is not a tensor operation: facts about this build and this machine. In Python's limited API, which one library
// serves all versions with (pybind11's headers do not compile in it).

#define Py_LIMITED_API 0x030A0000  // Python 3.10
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <vector>

#include "cpu/capability.h"
#include "cpu/places.h"

#if defined(GRADREG_FAST_CUDA)
#include "cuda/runtime.h"
#endif

namespace gradreg_fast {
namespace {

PyObject* name_of_capability(PyObject*, PyObject*) {
    return PyUnicode_FromString(capability_name(cpu_capability()));
}

PyObject* lanes_of(PyObject*, PyObject* element_size) {
    const long bytes = PyLong_AsLong(element_size);
    if (bytes == -1 && PyErr_Occurred()) return nullptr;
    return PyLong_FromLong(lanes(cpu_capability(), int(bytes)));
}

PyObject* mlp_kept_size(PyObject*, PyObject* arguments) {
    PyObject* list;
    long long element_size, rows, stack;
    int keep;
    if (!PyArg_ParseTuple(arguments, "O!LLLp", &PyList_Type, &list, &element_size, &rows, &stack, &keep)) {
        return nullptr;
    }
    std::vector<int64_t> widths(size_t(PyList_Size(list)));
    for (size_t i = 0; i < widths.size(); ++i) {
        widths[i] = PyLong_AsLongLong(PyList_GetItem(list, Py_ssize_t(i)));
        if (widths[i] == -1 && PyErr_Occurred()) return nullptr;
    }
    const Places places(widths, element_size, lanes(cpu_capability(), int(element_size)), rows, stack, keep);
    return PyLong_FromLongLong(places.total);
}

#if defined(GRADREG_FAST_CUDA)
PyObject* cuda_problem(PyObject*, PyObject*) {
    return PyUnicode_FromString(cuda::problem());
}
#endif

PyMethodDef functions[] = {
    {"cpu_capability", name_of_capability, METH_NOARGS, "The instruction set that the kernels use here."},
    {"lanes", lanes_of, METH_O, "How many numbers of this size a register of this processor holds."},
    {"mlp_kept_size", mlp_kept_size, METH_VARARGS,
     "How many numbers mlp_forward_pull keeps: (widths, the input's first; element size, rows, stack, keep)."},
#if defined(GRADREG_FAST_CUDA)
    {"cuda_problem", cuda_problem, METH_NOARGS, "Why CUDA kernels cannot run here; empty if they can."},
#endif
    {nullptr, nullptr, 0, nullptr},
};

int add_constants(PyObject* module) {
    return PyModule_AddStringConstant(module, "compiler", __VERSION__);
}

PyModuleDef_Slot slots[] = {{Py_mod_exec, reinterpret_cast<void*>(add_constants)}, {0, nullptr}};

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    "_C",
    "Compiled kernels of gradreg_fast; the operations are in torch.ops.gradreg_fast.",
    0,
    functions,
    slots,
    nullptr,
    nullptr,
    nullptr,
};

}  // namespace
}  // namespace gradreg_fast

PyMODINIT_FUNC PyInit__C() {
    return PyModuleDef_Init(&gradreg_fast::definition);
}
