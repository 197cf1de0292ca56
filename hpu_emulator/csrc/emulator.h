// What the translation units of the emulator share. Memory of an `hpu` tensor is plain host memory; only the
// device written on its storage differs, so that stock PyTorch treats it as a device of its own.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <c10/core/Allocator.h>
#include <c10/core/Device.h>
#include <c10/core/StorageImpl.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace hpu_emulator {

constexpr c10::DeviceIndex kMaxDevices = 64;

// ---- devices (guard_and_hooks.cpp)
void set_device_count(int64_t count);
c10::DeviceIndex device_count() noexcept;
c10::DeviceIndex current_device() noexcept;
// Returns the device that was current. Raises if there is no such device.
c10::DeviceIndex exchange_device(c10::DeviceIndex index);
void set_current_device_unchecked(c10::DeviceIndex index) noexcept;
// `hpu` without an index is the current device.
c10::Device normalise(c10::Device device);

// ---- memory (allocator.cpp)
struct MemoryStats {
  int64_t in_use, max_in_use, limit, allocs, frees, ooms;
};
MemoryStats memory_stats(c10::DeviceIndex index);
void reset_peak(c10::DeviceIndex index);
void set_limit(c10::DeviceIndex index, int64_t bytes);  // 0: no limit
c10::Allocator* allocator();
c10::Allocator* pinned_allocator();
bool is_pinned(const void* pointer);
// Memory that a CPU kernel allocated becomes memory of `device`; raises OutOfMemoryError beyond the limit,
// and then leaves `memory` with the caller.
c10::DataPtr adopt(c10::DataPtr&& memory, size_t bytes, c10::Device device);

// ---- the same memory under two devices (wrap.cpp)
// A CPU storage over the memory of an HPU storage, which it keeps alive.
c10::intrusive_ptr<c10::StorageImpl> cpu_storage_over(c10::StorageImpl* hpu);
// The HPU storage that a CPU storage lies over; a CPU storage that lies over none gives its memory up to a
// new one.
c10::intrusive_ptr<c10::StorageImpl> hpu_storage_of(
    c10::StorageImpl* cpu, c10::Device device, bool only_owner);
at::Tensor cpu_alias(const at::Tensor& hpu);
at::Tensor hpu_alias(const at::Tensor& cpu, c10::Device device);
at::Tensor tensor_over(
    c10::intrusive_ptr<c10::StorageImpl> storage, const at::Tensor& like, c10::DispatchKey key);
// After a kernel wrote to (and perhaps resized) `cpu`, gives `hpu` its sizes, strides and memory.
void sync_after_write(const at::Tensor& hpu, const at::Tensor& cpu);

// ---- operators (fallback.cpp)
// To be called once, when every typed kernel is registered. Returns how many operators it covered.
int64_t register_explicit_fallbacks();

// ---- random numbers (generator.cpp)
const at::Generator& default_generator(c10::DeviceIndex index);
at::Generator new_generator(c10::DeviceIndex index);
// The CPU generator inside an HPU one; of a CPU generator, itself.
at::Generator cpu_generator(const at::Generator& generator);

// ---- what hardware would refuse (strict.cpp)
enum Strict : uint32_t { kStrictDtypes = 1, kStrictFallbackOps = 2, kStrictDevices = 4 };
void set_strict(uint32_t flags) noexcept;
uint32_t strict() noexcept;
// Let CPU tensors of any size take part in operations on HPU tensors.
void set_tolerate_cpu_tensors(bool value) noexcept;
bool tolerate_cpu_tensors() noexcept;
void check_dtype(const char* op, c10::ScalarType dtype);
void check_fallback_op(const char* op);
[[noreturn]] void raise_mixed_devices(
    const std::string& op, const std::string& argument, c10::Device a, c10::Device b);
[[noreturn]] void raise_strict_cpu_tensor(
    const std::string& op, const std::string& argument, const at::Tensor& tensor);
bool may_run_on_cpu_on_hardware(const std::string& op);

}  // namespace hpu_emulator
