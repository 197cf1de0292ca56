// The memory of the emulated devices: host memory, counted per device, with a limit.
#include "emulator.h"

#include <c10/core/CPUAllocator.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/util/Exception.h>

#include <array>
#include <atomic>
#include <cstring>
#include <map>
#include <mutex>
#include <sstream>

namespace hpu_emulator {
namespace {

struct Counters {
  std::atomic<int64_t> in_use{0}, peak{0}, limit{0}, allocs{0}, frees{0}, ooms{0}, allocated_total{0};
};

Counters& counters(c10::DeviceIndex index) {
  // Leaked on purpose: tensors may be freed while the interpreter shuts down.
  static auto* all = new std::array<Counters, kMaxDevices>();
  TORCH_CHECK(
      index >= 0 && index < kMaxDevices, "Invalid device index ", static_cast<int>(index), ": there are ",
      static_cast<int>(device_count()), " HPU(s)");
  return (*all)[static_cast<size_t>(index)];
}

std::string readable(int64_t bytes) {
  std::ostringstream out;
  out.setf(std::ios::fixed);
  out.precision(2);
  if (bytes >= (int64_t{1} << 30)) {
    out << static_cast<double>(bytes) / (1 << 30) << " GiB";
  } else if (bytes >= (1 << 20)) {
    out << static_cast<double>(bytes) / (1 << 20) << " MiB";
  } else {
    out << static_cast<double>(bytes) / (1 << 10) << " KiB";
  }
  return out.str();
}

void charge(c10::DeviceIndex index, size_t bytes) {
  Counters& c = counters(index);
  const auto size = static_cast<int64_t>(bytes);
  const int64_t now = c.in_use.fetch_add(size, std::memory_order_relaxed) + size;
  const int64_t limit = c.limit.load(std::memory_order_relaxed);
  if (limit > 0 && now > limit) {
    c.in_use.fetch_sub(size, std::memory_order_relaxed);
    c.ooms.fetch_add(1, std::memory_order_relaxed);
    TORCH_CHECK_WITH(
        OutOfMemoryError, false, "HPU out of memory. Tried to allocate ", readable(size),
        ". hpu:", static_cast<int>(index), " has a total capacity of ", readable(limit), " of which ",
        readable(std::max<int64_t>(limit - (now - size), 0)), " is free; ", readable(now - size), " (",
        now - size, " bytes) is in use. The capacity of the emulated device is set by HPU_EMULATOR_MEMORY.");
  }
  int64_t peak = c.peak.load(std::memory_order_relaxed);
  while (now > peak && !c.peak.compare_exchange_weak(peak, now, std::memory_order_relaxed)) {
  }
  c.allocs.fetch_add(1, std::memory_order_relaxed);
  c.allocated_total.fetch_add(size, std::memory_order_relaxed);
}

struct Block {
  c10::DataPtr memory;
  size_t bytes;
  c10::DeviceIndex index;
};

void free_block(void* context) {
  auto* block = static_cast<Block*>(context);
  Counters& c = counters(block->index);
  c.in_use.fetch_sub(static_cast<int64_t>(block->bytes), std::memory_order_relaxed);
  c.frees.fetch_add(1, std::memory_order_relaxed);
  delete block;
}

using c10::CachingAllocator::Stat;
using c10::CachingAllocator::StatArray;
using c10::CachingAllocator::StatType;

void fill(StatArray& array, int64_t current, int64_t peak, int64_t allocated, int64_t freed) {
  Stat& stat = array[static_cast<size_t>(StatType::AGGREGATE)];
  stat.current = current;
  stat.peak = peak;
  stat.allocated = allocated;
  stat.freed = freed;
}

struct HPUAllocator final : c10::DeviceAllocator {
  c10::DataPtr allocate(size_t bytes) override {
    const c10::Device device(c10::DeviceType::HPU, current_device());
    if (bytes == 0) {
      return {nullptr, device};
    }
    charge(device.index(), bytes);
    auto* block = new Block{{}, bytes, device.index()};
    try {
      block->memory = c10::GetCPUAllocator()->allocate(bytes);
    } catch (...) {
      free_block(block);
      throw;
    }
    return {block->memory.get(), block, &free_block, device};
  }
  void copy_data(void* target, const void* source, size_t bytes) const override {
    std::memcpy(target, source, bytes);
  }

  bool initialized() override {
    return true;
  }
  void emptyCache(c10::MempoolId_t) override {
  }
  void recordStream(const c10::DataPtr&, c10::Stream) override {
  }
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex index) override {
    const MemoryStats s = memory_stats(index);
    const int64_t total = counters(index).allocated_total.load();
    c10::CachingDeviceAllocator::DeviceStats stats;
    for (StatArray* bytes :
         {&stats.allocated_bytes, &stats.reserved_bytes, &stats.active_bytes, &stats.requested_bytes}) {
      fill(*bytes, s.in_use, s.max_in_use, total, total - s.in_use);
    }
    fill(stats.allocation, s.allocs - s.frees, s.allocs - s.frees, s.allocs, s.frees);
    stats.num_ooms = s.ooms;
    return stats;
  }
  void resetAccumulatedStats(c10::DeviceIndex index) override {
    Counters& c = counters(index);
    c.allocated_total = c.in_use.load();
    c.ooms = 0;
  }
  void resetPeakStats(c10::DeviceIndex index) override {
    reset_peak(index);
  }
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex index) override {
    const MemoryStats s = memory_stats(index);
    const int64_t free = std::max<int64_t>(s.limit - s.in_use, 0);
    return {static_cast<size_t>(free), static_cast<size_t>(s.limit)};
  }
};

// Pinned host memory is host memory whose address is remembered, so that `is_pinned()` can answer.
struct PinnedRegistry {
  std::mutex mutex;
  std::map<const char*, size_t> ranges;
};
PinnedRegistry& pinned() {
  static auto* registry = new PinnedRegistry();
  return *registry;
}

void free_pinned(void* context) {
  auto* memory = static_cast<c10::DataPtr*>(context);
  {
    std::lock_guard<std::mutex> lock(pinned().mutex);
    pinned().ranges.erase(static_cast<const char*>(memory->get()));
  }
  delete memory;
}

struct PinnedAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) {
      return {nullptr, c10::Device(c10::kCPU)};
    }
    auto* memory = new c10::DataPtr(c10::GetCPUAllocator()->allocate(bytes));
    {
      std::lock_guard<std::mutex> lock(pinned().mutex);
      pinned().ranges[static_cast<const char*>(memory->get())] = bytes;
    }
    return {memory->get(), memory, &free_pinned, c10::Device(c10::kCPU)};
  }
  void copy_data(void* target, const void* source, size_t bytes) const override {
    std::memcpy(target, source, bytes);
  }
};

HPUAllocator the_allocator;
PinnedAllocator the_pinned_allocator;
REGISTER_ALLOCATOR(c10::DeviceType::HPU, &the_allocator);

}  // namespace

c10::Allocator* allocator() {
  return &the_allocator;
}

c10::Allocator* pinned_allocator() {
  return &the_pinned_allocator;
}

bool is_pinned(const void* pointer) {
  PinnedRegistry& registry = pinned();
  std::lock_guard<std::mutex> lock(registry.mutex);
  const auto* address = static_cast<const char*>(pointer);
  auto next = registry.ranges.upper_bound(address);
  if (next == registry.ranges.begin()) {
    return false;
  }
  --next;
  return address < next->first + next->second;
}

c10::DataPtr adopt(c10::DataPtr&& memory, size_t bytes, c10::Device device) {
  if (bytes == 0 || memory.get() == nullptr) {
    return {nullptr, device};
  }
  charge(device.index(), bytes);
  auto* block = new Block{std::move(memory), bytes, device.index()};
  return {block->memory.get(), block, &free_block, device};
}

MemoryStats memory_stats(c10::DeviceIndex index) {
  const Counters& c = counters(index);
  return {c.in_use.load(), c.peak.load(), c.limit.load(), c.allocs.load(), c.frees.load(), c.ooms.load()};
}

void reset_peak(c10::DeviceIndex index) {
  Counters& c = counters(index);
  c.peak = c.in_use.load();
}

void set_limit(c10::DeviceIndex index, int64_t bytes) {
  TORCH_CHECK(bytes >= 0, "a memory limit cannot be negative, got ", bytes);
  counters(index).limit = bytes;
}

}  // namespace hpu_emulator
