// Strictness: what the hardware would not do, or would do somewhere else, raises.
#include "emulator.h"

#include <c10/util/Exception.h>

#include <atomic>
#include <string_view>
#include <unordered_set>

namespace hpu_emulator {
namespace {

std::atomic<uint32_t> g_strict{0};
std::atomic<bool> g_tolerate{false};

// Operators whose result's shape, or whose algorithm, makes the Gaudi software run them on the host.
const std::unordered_set<std::string_view>& host_operators() {
  static const auto* names = new std::unordered_set<std::string_view>{
      "bincount",
      "cholesky",
      "cholesky_inverse",
      "cholesky_solve",
      "geqrf",
      "histc",
      "lgamma",
      "lstsq",
      "masked_select",
      "nonzero",
      "nonzero_static",
      "ormqr",
      "polygamma",
      "repeat_interleave",
      "searchsorted",
      "special_i0e",
      "triangular_solve",
      "unique_consecutive",
      "unique_dim",
      "unique_dim_consecutive",
      "_unique",
      "_unique2",
      "_ctc_loss",
      "_linalg_det",
      "_linalg_eigh",
      "_linalg_eigvals",
      "_linalg_slogdet",
      "_linalg_solve_ex",
      "_linalg_svd",
      "_fft_c2c",
      "_fft_c2r",
      "_fft_r2c"};
  return *names;
}

}  // namespace

void set_strict(uint32_t flags) noexcept {
  g_strict.store(flags, std::memory_order_relaxed);
}

uint32_t strict() noexcept {
  return g_strict.load(std::memory_order_relaxed);
}

void set_tolerate_cpu_tensors(bool value) noexcept {
  g_tolerate.store(value, std::memory_order_relaxed);
}

bool tolerate_cpu_tensors() noexcept {
  return g_tolerate.load(std::memory_order_relaxed);
}

void check_dtype(const char* op, c10::ScalarType dtype) {
  const bool absent =
      dtype == c10::ScalarType::Half || dtype == c10::ScalarType::Double || c10::isComplexType(dtype);
  TORCH_CHECK(
      !absent, "strict dtypes: ", op, " on a ", dtype,
      " HPU tensor. Gaudi computes in float32, bfloat16 and integers; "
      "convert the tensor, or take `dtypes` out of HPU_EMULATOR_STRICT.");
}

bool may_run_on_cpu_on_hardware(const std::string& op) {
  const std::string_view name(op);
  const bool decomposition = name.substr(0, 7) == "linalg_" && name.find("norm") == name.npos &&
                             name != "linalg_cross" && name != "linalg_vecdot";
  return decomposition || host_operators().count(name) > 0;
}

void check_fallback_op(const char* op) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      false, "strict fallback_ops: ", op,
      " has a result whose shape depends on the data, or is an algorithm for the host: the "
      "hardware's software may run it there and split the graph. Rewrite it, do it on the CPU on purpose, or "
      "take "
      "`fallback_ops` out of HPU_EMULATOR_STRICT.");
}

void raise_mixed_devices(const std::string& op, const std::string& argument, c10::Device a, c10::Device b) {
  TORCH_CHECK(
      false, "Expected all tensors to be on the same device, but found at least two devices, ", a, " and ", b,
      "! (when checking argument for argument ", argument, " in method wrapper_HPU_", op, ")");
}

void raise_strict_cpu_tensor(const std::string& op, const std::string& argument, const at::Tensor& tensor) {
  TORCH_CHECK(
      false, "strict devices: argument ", argument, " of ", op, " is a CPU tensor of shape ", tensor.sizes(),
      " beside HPU tensors: the hardware copies it over at every call. Create it on the HPU, or take "
      "`devices` out of "
      "HPU_EMULATOR_STRICT.");
}

}  // namespace hpu_emulator
