// torch.autocast("hpu"): PyTorch ships no autocast kernels for the HPU, so its own operator lists are
// registered.
#include <ATen/autocast_mode.h>

namespace {

using namespace at;  // the macros name the types of signatures without their namespace

// Called as KERNEL_HPU(op[, overload], policy).
#define KERNEL_HPU(...) KERNEL(c10::DeviceType::HPU, __VA_ARGS__)
#define LOWER_PRECISION(...) KERNEL_HPU(__VA_ARGS__, lower_precision_fp)
#define FP32(...) KERNEL_HPU(__VA_ARGS__, fp32)
#define FP32_SET_DTYPE(...) KERNEL_HPU(__VA_ARGS__, fp32_set_opt_dtype)
#define PROMOTE(...) KERNEL_HPU(__VA_ARGS__, promote)
#define APPEND_DTYPE(REDISPATCH, NAME, SIGNATURE, REDISPATCH_SIGNATURE, POLICY) \
  KERNEL_DIFFERENT_REDISPATCH_SIGNATURE(                                        \
      c10::DeviceType::HPU, REDISPATCH, NAME, SIGNATURE, REDISPATCH_SIGNATURE, POLICY)

TORCH_LIBRARY_IMPL(_, AutocastHPU, m) {
  m.fallback(torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(aten, AutocastHPU, m) {
  AT_FORALL_LOWER_PRECISION_FP(LOWER_PRECISION)
  AT_FORALL_FP32(FP32)
  AT_FORALL_FP32_SET_OPT_DTYPE(FP32_SET_DTYPE)
  AT_FORALL_DIFFERENT_REDISPATCH_SIGNATURE(APPEND_DTYPE)
  AT_FORALL_PROMOTE(PROMOTE)
}

}  // namespace
