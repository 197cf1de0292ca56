// habana_torch_plugin_emulator._C: what the Python side of the emulator may ask of the C++ side.
#include "accounting.h"
#include "collectives.h"
#include "emulator.h"

#include <pybind11/functional.h>
#include <pybind11/stl.h>
#include <torch/csrc/Generator.h>
#include <torch/csrc/utils/pybind.h>

#include <cstdlib>
#include <memory>

namespace py = pybind11;

namespace hpu_emulator {
namespace {

py::dict stats_dict(int64_t index) {
  const MemoryStats s = memory_stats(static_cast<c10::DeviceIndex>(index));
  py::dict out;
  out["InUse"] = s.in_use;
  out["MaxInUse"] = s.max_in_use;
  out["Limit"] = s.limit;
  out["NumAllocs"] = s.allocs;
  out["NumFrees"] = s.frees;
  out["NumOOMs"] = s.ooms;
  return out;
}

py::dict graph_dict(const Graph& graph) {
  py::dict out;
  out["id"] = graph.id;
  out["ops"] = graph.ops;
  out["runs"] = graph.runs;
  out["first_flush"] = graph.first_flush;
  out["cause_op"] = graph.cause_op;
  out["cause_shapes"] = graph.cause_shapes;
  out["cause_dtypes"] = graph.cause_dtypes;
  out["location"] = graph.location;
  out["flush_reason"] = graph.flush_reason;
  return out;
}

// A Python function that C++ threads may hold, call and drop whether or not they have the GIL.
Locator locator_from(py::object function) {
  if (function.is_none()) {
    return nullptr;
  }
  std::shared_ptr<py::object> held(new py::object(std::move(function)), [](py::object* object) {
    py::gil_scoped_acquire gil;
    delete object;
  });
  return [held](const std::string& op) -> std::string {
    py::gil_scoped_acquire gil;
    py::error_scope pending;  // an exception already on its way must survive the call
    try {
      return py::cast<std::string>((*held)(op));
    } catch (py::error_already_set& error) {
      // An operator must not fail because the report about it does; Python prints this on stderr.
      error.discard_as_unraisable("habana_torch_plugin_emulator: graph locator");
      return "";
    }
  };
}

bool lazy_mode() {
  const char* value = std::getenv("PT_HPU_LAZY_MODE");
  return value == nullptr || std::string(value) != "0";
}

}  // namespace
}  // namespace hpu_emulator

PYBIND11_MODULE(_C, m) {
  using namespace hpu_emulator;

  m.def("device_count", [] { return static_cast<int>(device_count()); });
  m.def("set_device_count", &set_device_count);
  m.def("current_device", [] { return static_cast<int>(current_device()); });
  m.def("set_device", [](int64_t index) {
    TORCH_CHECK(index >= -128 && index <= 127, "Invalid device index ", index);
    exchange_device(static_cast<c10::DeviceIndex>(index));
  });
  m.def("synchronize", [] {});

  m.def("memory_stats", &stats_dict, py::arg("device") = 0);
  m.def(
      "reset_peak", [](int64_t index) { reset_peak(static_cast<c10::DeviceIndex>(index)); },
      py::arg("device") = 0);
  m.def(
      "set_limit",
      [](int64_t index, int64_t bytes) { set_limit(static_cast<c10::DeviceIndex>(index), bytes); },
      py::arg("device"), py::arg("bytes"));
  m.def("empty_cache", [] {});

  m.def("default_generator", [](int64_t index) {
    return py::reinterpret_steal<py::object>(
        THPGenerator_Wrap(default_generator(static_cast<c10::DeviceIndex>(index))));
  });

  m.def("set_strict", [](uint32_t flags) { set_strict(flags); });
  m.def("strict", [] { return strict(); });
  m.def("set_tolerate_cpu_tensors", [](bool value) { set_tolerate_cpu_tensors(value); });
  m.def("tolerate_cpu_tensors", [] { return tolerate_cpu_tensors(); });
  m.attr("STRICT_DTYPES") = static_cast<uint32_t>(kStrictDtypes);
  m.attr("STRICT_FALLBACK_OPS") = static_cast<uint32_t>(kStrictFallbackOps);
  m.attr("STRICT_DEVICES") = static_cast<uint32_t>(kStrictDevices);

  m.def(
      "accounting_start", [](std::optional<bool> lazy) { accounting_start(lazy.value_or(lazy_mode())); },
      py::arg("lazy") = py::none());
  m.def("accounting_stop", &accounting_stop);
  m.def("accounting_reset", &accounting_reset);
  m.def("accounting_active", [] { return accounting(); });
  m.def(
      "accounting_mark",
      [](const std::string& reason) {
        if (accounting()) {
          account_flush(reason.c_str());
        }
      },
      py::arg("reason"));
  m.def("accounting_set_locator", [](py::object function) {
    accounting_set_locator(locator_from(std::move(function)));
  });
  m.def("accounting_graphs", [] {
    py::list out;
    for (const Graph& graph : accounting_graphs()) {
      out.append(graph_dict(graph));
    }
    return out;
  });
  m.def("accounting_counts", [] {
    const Counts counts = accounting_counts();
    py::dict out;
    out["flushes"] = counts.flushes;
    out["distinct"] = counts.distinct;
    out["operators"] = counts.operators;
    return out;
  });

  m.def("create_hccl", &create_hccl, py::arg("gloo"), py::arg("timeout_ms"));

  m.attr("explicit_fallbacks") = register_explicit_fallbacks();
}
