// Kernels that must see the HPU tensor itself: allocation, views, storage surgery, copies between devices;
// and the few operators whose CPU form is chosen above the CPU dispatch key (convolution, attention).
#include "accounting.h"
#include "emulator.h"

#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/copy_native.h>
#include <ATen/ops/native_dropout_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Stream.h>
#include <torch/library.h>

namespace hpu_emulator {
namespace {

using at::IntArrayRef;
using at::Tensor;
using c10::Device;
using c10::Layout;
using c10::MemoryFormat;
using c10::ScalarType;
using std::optional;

constexpr c10::DispatchKeySet kHPUKeys(c10::DispatchKey::HPU);

void require_dense(optional<Layout> layout, optional<bool> pin_memory) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      c10::layout_or_default(layout) == Layout::Strided,
      "The HPU emulator holds dense tensors only, not tensors of layout ", c10::layout_or_default(layout),
      ". Keep sparse tensors on the CPU.");
  TORCH_CHECK(!c10::pinned_memory_or_default(pin_memory), "Only dense CPU tensors can be pinned");
}

Tensor empty_memory_format(
    IntArrayRef size, optional<ScalarType> dtype, optional<Layout> layout, optional<Device> device,
    optional<bool> pin_memory, optional<MemoryFormat> format) {
  require_dense(layout, pin_memory);
  const c10::DeviceGuard guard(normalise(c10::device_or_default(device)));
  return at::detail::empty_generic(size, allocator(), kHPUKeys, c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(
    IntArrayRef size, IntArrayRef stride, optional<ScalarType> dtype, optional<Layout> layout,
    optional<Device> device, optional<bool> pin_memory) {
  require_dense(layout, pin_memory);
  const c10::DeviceGuard guard(normalise(c10::device_or_default(device)));
  return at::detail::empty_strided_generic(size, stride, allocator(), kHPUKeys, c10::dtype_or_default(dtype));
}

const Tensor& resize_(const Tensor& self, IntArrayRef size, optional<MemoryFormat> format) {
  const c10::DeviceGuard guard(self.device());
  at::native::resize_impl_cpu_(self.unsafeGetTensorImpl(), size, /*stride=*/std::nullopt);
  if (format.has_value()) {
    TORCH_CHECK(*format != MemoryFormat::Preserve, "Unsupported memory format ", *format, " for resize_");
    self.unsafeGetTensorImpl()->empty_tensor_restride(*format);
  }
  return self;
}

Tensor& set_source_storage_offset(
    Tensor& self, at::Storage source, int64_t offset, IntArrayRef size, IntArrayRef stride) {
  const c10::DeviceGuard guard(self.device());
  return at::native::set_storage_cpu_(self, std::move(source), offset, size, stride);
}

Tensor& set_source_storage(Tensor& self, at::Storage source) {
  const auto count = static_cast<int64_t>(source.nbytes() / self.dtype().itemsize());
  return set_source_storage_offset(self, std::move(source), 0, count, {});
}

Tensor& set_source_tensor(Tensor& self, const Tensor& source) {
  if (self.unsafeGetTensorImpl() == source.unsafeGetTensorImpl()) {
    return self;
  }
  return set_source_storage_offset(
      self, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

Tensor& set_nothing(Tensor& self) {
  c10::Storage storage(
      c10::Storage::use_byte_size_t(), 0, c10::DataPtr(nullptr, self.device()), allocator(),
      /*resizable=*/true);
  return set_source_storage_offset(self, std::move(storage), 0, {0}, {});
}

// ---- copies

Tensor as_cpu(const Tensor& tensor) {
  return tensor.is_hpu() ? cpu_alias(tensor) : tensor;
}

void account_copy(const Tensor& source, const Tensor& target) {
  if (!target.is_hpu()) {
    account_flush("copy to host");
  } else if (source.is_hpu()) {
    static const auto* name = new std::string("copy_");
    static const uint64_t hash = hash_text(*name);
    const c10::IValue arguments[] = {target, source};
    account_operator(*name, hash, arguments, 2);
  }
}

Tensor copy_from(const Tensor& source, const Tensor& target, bool non_blocking) {
  if (C10_UNLIKELY(accounting())) {
    account_copy(source, target);
  }
  Tensor out = as_cpu(target);
  const Tensor in = source.is_same(target) ? out : as_cpu(source);
  const at::AutoDispatchBelowADInplaceOrView guard;
  at::native::copy_(out, in, non_blocking);
  return target;
}

Tensor copy_from_and_resize(const Tensor& source, const Tensor& target) {
  if (target.sizes() != source.sizes()) {
    target.resize_(source.sizes());
  }
  return copy_from(source, target, false);
}

void record_stream(Tensor&, c10::Stream) {
}

// ---- operators

int64_t fused_sdp_choice(
    const Tensor&, const Tensor&, const Tensor&, const optional<Tensor>&, double, bool, optional<double>,
    bool) {
  return 0;  // the math form: its pieces are operators of their own, as on hardware without FusedSDPA
}

optional<Tensor> as_cpu(const optional<Tensor>& tensor) {
  return tensor.has_value() && tensor->defined() ? optional<Tensor>(as_cpu(*tensor)) : std::nullopt;
}

void account_convolution(
    const char* text, at::ArrayRef<Tensor> tensors, IntArrayRef stride, IntArrayRef padding) {
  if (C10_LIKELY(!accounting())) {
    return;
  }
  static const auto* forward = new std::string("convolution_overrideable");
  static const auto* backward = new std::string("convolution_backward_overrideable");
  const std::string& name = *forward == text ? *forward : *backward;
  std::vector<c10::IValue> arguments(tensors.begin(), tensors.end());
  arguments.emplace_back(stride);
  arguments.emplace_back(padding);
  account_operator(name, hash_text(name), arguments.data(), arguments.size());
}

void require_hpu(const Tensor& input, const Tensor& weight, const char* op) {
  if (!input.is_hpu() || !weight.is_hpu()) {
    raise_mixed_devices(op, "weight", input.device(), weight.device());
  }
  if (strict() & kStrictDtypes) {
    check_dtype(op, input.scalar_type());
  }
}

Tensor convolution(
    const Tensor& input, const Tensor& weight, const optional<Tensor>& bias, IntArrayRef stride,
    IntArrayRef padding, IntArrayRef dilation, bool transposed, IntArrayRef output_padding, int64_t groups) {
  require_hpu(input, weight, "convolution");
  account_convolution("convolution_overrideable", {input, weight}, stride, padding);
  const at::AutoDispatchBelowADInplaceOrView guard;
  return hpu_alias(
      at::convolution(
          as_cpu(input), as_cpu(weight), as_cpu(bias), stride, padding, dilation, transposed, output_padding,
          groups),
      input.device());
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& grad, const Tensor& input, const Tensor& weight, IntArrayRef stride, IntArrayRef padding,
    IntArrayRef dilation, bool transposed, IntArrayRef output_padding, int64_t groups,
    std::array<bool, 3> mask) {
  account_convolution("convolution_backward_overrideable", {grad, input, weight}, stride, padding);
  const at::AutoDispatchBelowADInplaceOrView guard;
  const std::vector<int64_t> bias_size{grad.size(1)};
  auto [a, b, c] = at::convolution_backward(
      as_cpu(grad), as_cpu(input), as_cpu(weight), at::OptionalIntArrayRef(bias_size), stride, padding,
      dilation, transposed, output_padding, groups, mask);
  const Device device = input.device();
  return {hpu_alias(a, device), hpu_alias(b, device), hpu_alias(c, device)};
}

TORCH_LIBRARY_IMPL(aten, HPU, m) {
  m.impl("empty.memory_format", &empty_memory_format);
  m.impl("empty_strided", &empty_strided);
  m.impl("resize_", &resize_);
  m.impl("set_.source_Storage_storage_offset", &set_source_storage_offset);
  m.impl("set_.source_Storage", &set_source_storage);
  m.impl("set_.source_Tensor", &set_source_tensor);
  m.impl("set_", &set_nothing);
  m.impl("view", static_cast<Tensor (*)(const Tensor&, IntArrayRef)>(&at::native::view));
  m.impl("view.dtype", &at::native::view_dtype);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("unfold", &at::native::unfold);
  m.impl("view_as_real", &at::native::view_as_real);
  m.impl("view_as_complex", &at::native::view_as_complex);
  m.impl("native_dropout", &at::native::native_dropout_cpu);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("record_stream", &record_stream);
  m.impl("_fused_sdp_choice", &fused_sdp_choice);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
}

// Lazy conjugation and negation are resolved by cloning, which copies: the copy itself must take them as they
// are.
TORCH_LIBRARY_IMPL(aten, Conjugate, m) {
  m.impl("_copy_from", torch::CppFunction::makeFallthrough());
}
TORCH_LIBRARY_IMPL(aten, Negative, m) {
  m.impl("_copy_from", torch::CppFunction::makeFallthrough());
}

}  // namespace
}  // namespace hpu_emulator
