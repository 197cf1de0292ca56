// Generators of the `hpu` device. Each holds a CPU generator, so that a seed gives the numbers it gives on
// the CPU.
#include "emulator.h"

#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/GeneratorImpl.h>

#include <array>

namespace hpu_emulator {
namespace {

struct HPUGenerator final : c10::GeneratorImpl {
  HPUGenerator(c10::DeviceIndex index, at::Generator cpu)
      : GeneratorImpl(c10::Device(c10::DeviceType::HPU, index), c10::DispatchKeySet(c10::DispatchKey::HPU)),
        cpu_(std::move(cpu)) {
  }

  void set_current_seed(uint64_t seed) override {
    cpu_.set_current_seed(seed);
  }
  void set_offset(uint64_t offset) override {
    cpu_.set_offset(offset);
  }
  uint64_t get_offset() const override {
    return cpu_.get_offset();
  }
  uint64_t current_seed() const override {
    return cpu_.current_seed();
  }
  uint64_t seed() override {
    return cpu_.seed();
  }
  void set_state(const c10::TensorImpl& state) override {
    cpu_.unsafeGetGeneratorImpl()->set_state(state);
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return cpu_.unsafeGetGeneratorImpl()->get_state();
  }
  const at::Generator& cpu() const {
    return cpu_;
  }

 private:
  HPUGenerator* clone_impl() const override {
    return new HPUGenerator(device_.index(), cpu_.clone());
  }
  at::Generator cpu_;
};

}  // namespace

const at::Generator& default_generator(c10::DeviceIndex index) {
  static auto* all = [] {
    auto* generators = new std::array<at::Generator, kMaxDevices>();
    for (size_t i = 0; i < kMaxDevices; ++i) {
      (*generators)[i] = new_generator(static_cast<c10::DeviceIndex>(i));
    }
    return generators;
  }();
  TORCH_CHECK(
      index >= 0 && index < device_count(), "Invalid device index ", static_cast<int>(index), ": there are ",
      static_cast<int>(device_count()), " HPU(s)");
  return (*all)[static_cast<size_t>(index)];
}

at::Generator new_generator(c10::DeviceIndex index) {
  return at::make_generator<HPUGenerator>(index, at::detail::createCPUGenerator());
}

at::Generator cpu_generator(const at::Generator& generator) {
  if (!generator.defined() || generator.device().type() != c10::DeviceType::HPU) {
    return generator;
  }
  return static_cast<HPUGenerator*>(generator.unsafeGetGeneratorImpl())->cpu();
}

}  // namespace hpu_emulator
