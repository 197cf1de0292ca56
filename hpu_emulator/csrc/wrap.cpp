// One memory, two devices. A CPU storage over an HPU storage carries that storage as its context, which keeps
// it alive and lets a result be traced back to the tensor it is a view of.
#include "emulator.h"

#include <ATen/ops/zeros.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/TensorImpl.h>

namespace hpu_emulator {
namespace {

void release_storage(void* context) {
  c10::raw::intrusive_ptr::decref(static_cast<c10::StorageImpl*>(context));
}

c10::DataPtr cpu_pointer_over(c10::StorageImpl* hpu) {
  c10::raw::intrusive_ptr::incref(hpu);
  return {hpu->_mutable_data_ptr_no_checks().get(), hpu, &release_storage, c10::Device(c10::kCPU)};
}

}  // namespace

c10::intrusive_ptr<c10::StorageImpl> cpu_storage_over(c10::StorageImpl* hpu) {
  return c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), static_cast<int64_t>(hpu->nbytes()), cpu_pointer_over(hpu),
      c10::GetCPUAllocator(), /*resizable=*/true);
}

c10::intrusive_ptr<c10::StorageImpl> hpu_storage_of(
    c10::StorageImpl* cpu, c10::Device device, bool only_owner) {
  c10::DataPtr& pointer = cpu->_mutable_data_ptr_no_checks();
  if (pointer.get_deleter() == &release_storage) {
    return c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(
        static_cast<c10::StorageImpl*>(pointer.get_context()));
  }
  const size_t bytes = cpu->nbytes();
  auto hpu = c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), static_cast<int64_t>(bytes),
      adopt(std::move(pointer), bytes, device), allocator(), /*resizable=*/true);
  if (!only_owner) {
    // Others still look at this CPU storage (a second result, a saved tensor): it now lies over the HPU one.
    cpu->set_data_ptr_noswap(cpu_pointer_over(hpu.get()));
  }
  return hpu;
}

at::Tensor tensor_over(
    c10::intrusive_ptr<c10::StorageImpl> storage, const at::Tensor& like, c10::DispatchKey key) {
  const c10::TensorImpl* source = like.unsafeGetTensorImpl();
  auto result = at::detail::make_tensor<c10::TensorImpl>(
      c10::Storage(std::move(storage)), c10::DispatchKeySet(key), source->dtype());
  c10::TensorImpl* target = result.unsafeGetTensorImpl();
  target->set_sizes_and_strides(source->sizes(), source->strides(), source->storage_offset());
  if (C10_UNLIKELY(source->is_wrapped_number())) {
    target->set_wrapped_number(true);
  }
  if (C10_UNLIKELY(source->is_conj())) {
    target->_set_conj(true);
  }
  if (C10_UNLIKELY(source->is_neg())) {
    target->_set_neg(true);
  }
  return result;
}

at::Tensor cpu_alias(const at::Tensor& hpu) {
  TORCH_INTERNAL_ASSERT_DEBUG_ONLY(hpu.is_hpu());
  return tensor_over(
      cpu_storage_over(hpu.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl()), hpu,
      c10::DispatchKey::CPU);
}

at::Tensor hpu_alias(const at::Tensor& cpu, c10::Device device) {
  if (!cpu.defined() || !cpu.is_cpu()) {
    return cpu;
  }
  TORCH_CHECK_NOT_IMPLEMENTED(
      cpu.layout() == at::kStrided && !cpu.is_quantized(),
      "The HPU emulator holds dense tensors only; this operation returned one of layout ", cpu.layout(),
      cpu.is_quantized() ? ", quantized" : "", ". Do it on the CPU: tensor.cpu().");
  if (C10_UNLIKELY(cpu._is_zerotensor())) {
    return hpu_alias(at::zeros(cpu.sizes(), cpu.options()), device);  // a zero tensor has no memory
  }
  const bool only_owner = cpu.use_count() == 1 && cpu.storage().use_count() == 1;
  return tensor_over(
      hpu_storage_of(cpu.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl(), device, only_owner),
      cpu, c10::DispatchKey::HPU);
}

void sync_after_write(const at::Tensor& hpu, const at::Tensor& cpu) {
  c10::TensorImpl* target = hpu.unsafeGetTensorImpl();
  c10::TensorImpl* source = cpu.unsafeGetTensorImpl();
  c10::StorageImpl* hpu_storage = target->unsafe_storage().unsafeGetStorageImpl();
  c10::StorageImpl* cpu_storage = source->unsafe_storage().unsafeGetStorageImpl();
  c10::DataPtr& pointer = cpu_storage->_mutable_data_ptr_no_checks();
  if (C10_UNLIKELY(pointer.get_deleter() != &release_storage)) {
    const size_t bytes = cpu_storage->nbytes();
    hpu_storage->set_data_ptr_noswap(adopt(std::move(pointer), bytes, hpu.device()));
    hpu_storage->set_nbytes(bytes);
    cpu_storage->set_data_ptr_noswap(cpu_pointer_over(hpu_storage));
  } else if (C10_UNLIKELY(pointer.get_context() != hpu_storage)) {
    // The kernel replaced the storage by that of another HPU tensor.
    target->set_storage_keep_dtype(c10::Storage(hpu_storage_of(cpu_storage, hpu.device(), false)));
  }
  if (C10_UNLIKELY(
          target->sizes() != source->sizes() || target->strides() != source->strides() ||
          target->storage_offset() != source->storage_offset())) {
    target->set_sizes_and_strides(source->sizes(), source->strides(), source->storage_offset());
  }
}

}  // namespace hpu_emulator
