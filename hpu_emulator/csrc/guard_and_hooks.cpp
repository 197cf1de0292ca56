// Devices, streams and events as PyTorch's generic code asks for them. Every kernel has finished when it
// returns, so streams only have identities and events only carry a time.
#include "emulator.h"

#include <ATen/detail/HPUHooksInterface.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <array>
#include <atomic>
#include <chrono>

namespace hpu_emulator {
namespace {

std::atomic<int> g_device_count{1};
std::atomic<int64_t> g_next_stream{1};

struct ThreadState {
  c10::DeviceIndex device = 0;
  std::array<c10::StreamId, kMaxDevices> streams{};
};
thread_local ThreadState t_state;

struct RecordedEvent {
  std::chrono::steady_clock::time_point time;
};

c10::DeviceIndex index_of(c10::Device device) {
  return device.has_index() ? device.index() : t_state.device;
}

struct HPUGuardImpl final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override {
    return c10::DeviceType::HPU;
  }
  c10::Device exchangeDevice(c10::Device device) const override {
    TORCH_INTERNAL_ASSERT(device.is_hpu());
    return {c10::DeviceType::HPU, exchange_device(index_of(device))};
  }
  c10::Device getDevice() const override {
    return {c10::DeviceType::HPU, current_device()};
  }
  void setDevice(c10::Device device) const override {
    exchange_device(index_of(device));
  }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    set_current_device_unchecked(device.index());
  }
  c10::Stream getStream(c10::Device device) const override {
    const auto index = index_of(device);
    return c10::Stream(
        c10::Stream::UNSAFE, c10::Device(c10::DeviceType::HPU, index),
        t_state.streams[static_cast<size_t>(index)]);
  }
  c10::Stream getDefaultStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, c10::Device(c10::DeviceType::HPU, index_of(device)));
  }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override {
    return getNewStream(device, 0);
  }
  c10::Stream getNewStream(c10::Device device, int) const override {
    return c10::Stream(
        c10::Stream::UNSAFE, c10::Device(c10::DeviceType::HPU, index_of(device)), g_next_stream.fetch_add(1));
  }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    const auto index = static_cast<size_t>(stream.device_index());
    TORCH_CHECK(index < kMaxDevices, "Invalid device index ", index);
    const c10::StreamId old = t_state.streams[index];
    t_state.streams[index] = stream.id();
    return c10::Stream(c10::Stream::UNSAFE, stream.device(), old);
  }
  void* getStreamNativeHandle(const c10::Stream) const override {
    return nullptr;
  }

  void destroyEvent(void* event, const c10::DeviceIndex) const noexcept override {
    delete static_cast<RecordedEvent*>(event);
  }
  void record(void** event, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {
    if (*event == nullptr) {
      *event = new RecordedEvent();
    }
    static_cast<RecordedEvent*>(*event)->time = std::chrono::steady_clock::now();
  }
  void block(void*, const c10::Stream&) const override {
  }
  bool queryEvent(void*) const override {
    return true;
  }
  void synchronizeEvent(void*) const override {
  }
  double elapsedTime(void* first, void* second, const c10::DeviceIndex) const override {
    TORCH_CHECK(first && second, "Both events must be recorded before calculating elapsed time.");
    return std::chrono::duration<double, std::milli>(
               static_cast<RecordedEvent*>(second)->time - static_cast<RecordedEvent*>(first)->time)
        .count();
  }

  c10::DeviceIndex deviceCount() const noexcept override {
    return device_count();
  }
  bool queryStream(const c10::Stream&) const override {
    return true;
  }
  void synchronizeStream(const c10::Stream&) const override {
  }
  void synchronizeDevice(const c10::DeviceIndex) const override {
  }
};

C10_REGISTER_GUARD_IMPL(HPU, HPUGuardImpl);

struct HPUHooks final : at::HPUHooksInterface {
  explicit HPUHooks(at::HPUHooksArgs) {
  }

  void init() const override {
  }
  bool hasHPU() const override {
    return true;
  }
  bool isBuilt() const override {
    return true;
  }
  bool isAvailable() const override {
    return device_count() > 0;
  }
  bool hasPrimaryContext(c10::DeviceIndex index) const override {
    return index >= 0 && index < device_count();
  }
  c10::DeviceIndex deviceCount() const override {
    return device_count();
  }
  void setCurrentDevice(c10::DeviceIndex index) const override {
    exchange_device(index);
  }
  c10::DeviceIndex getCurrentDevice() const override {
    return current_device();
  }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex index) const override {
    return index < 0 ? current_device() : exchange_device(index);
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex index) const override {
    return exchangeDevice(index);
  }
  bool isPinnedPtr(const void* pointer) const override {
    return is_pinned(pointer);
  }
  c10::Allocator* getPinnedMemoryAllocator() const override {
    return pinned_allocator();
  }
  c10::Device getDeviceFromPtr(void*) const override {
    return {c10::DeviceType::HPU, current_device()};
  }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex index) const override {
    return default_generator(index < 0 ? current_device() : index);
  }
  at::Generator getNewGenerator(c10::DeviceIndex index) const override {
    return new_generator(index < 0 ? current_device() : index);
  }
};

}  // namespace

void set_device_count(int64_t count) {
  TORCH_CHECK(
      count >= 1 && count <= kMaxDevices, "the emulator shows 1 to ", static_cast<int>(kMaxDevices),
      " HPUs, not ", count);
  g_device_count = static_cast<int>(count);
}

c10::DeviceIndex device_count() noexcept {
  return static_cast<c10::DeviceIndex>(g_device_count.load(std::memory_order_relaxed));
}

c10::DeviceIndex current_device() noexcept {
  return t_state.device;
}

c10::DeviceIndex exchange_device(c10::DeviceIndex index) {
  TORCH_CHECK(
      index >= 0 && index < device_count(), "Invalid device index ", static_cast<int>(index), ": there are ",
      static_cast<int>(device_count()), " HPU(s). HPU_EMULATOR_DEVICES sets how many the emulator shows.");
  return std::exchange(t_state.device, index);
}

void set_current_device_unchecked(c10::DeviceIndex index) noexcept {
  if (index >= 0 && index < kMaxDevices) {
    t_state.device = index;
  }
}

c10::Device normalise(c10::Device device) {
  return {c10::DeviceType::HPU, index_of(device)};
}

}  // namespace hpu_emulator

namespace at {
using hpu_emulator::HPUHooks;
REGISTER_HPU_HOOKS(HPUHooks);
}  // namespace at
