// The kernel behind nearly every operator: look at the HPU tensors as CPU tensors over the same memory, run
// the CPU kernel, and give its results back as HPU tensors. Nothing is copied.
#include "accounting.h"
#include "collectives.h"
#include "emulator.h"
#include "operator.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/List.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <c10/util/SmallVector.h>
#include <c10/util/flat_hash_map.h>
#include <torch/library.h>

namespace hpu_emulator {
namespace {

using c10::IValue;

// The HPU tensors of one call beside the CPU tensors that stand for them.
class Aliases {
 public:
  struct Entry {
    at::Tensor hpu;
    at::Tensor cpu;
    size_t argument;
  };

  const at::Tensor& add(at::Tensor&& hpu, size_t argument) {
    c10::TensorImpl* impl = hpu.unsafeGetTensorImpl();
    c10::StorageImpl* storage = impl->unsafe_storage().unsafeGetStorageImpl();
    const Entry* same_storage = nullptr;
    // Two aliases of one storage must share their CPU storage, or the kernels' overlap checks would miss it.
    if (entries_.size() <= kScan) {
      for (const Entry& entry : entries_) {
        if (entry.hpu.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl() == storage) {
          same_storage = &entry;
          if (entry.hpu.unsafeGetTensorImpl() == impl) {
            entries_.push_back({std::move(hpu), entry.cpu, argument});
            return entries_.back().cpu;
          }
        }
      }
    } else {
      if (by_storage_.empty()) {
        for (size_t i = 0; i < entries_.size(); ++i) {
          by_storage_.emplace(
              entries_[i].hpu.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl(), i);
        }
      }
      const auto found = by_storage_.find(storage);
      if (found != by_storage_.end()) {
        same_storage = &entries_[found->second];
      } else {
        by_storage_.emplace(storage, entries_.size());
      }
    }
    at::Tensor cpu =
        same_storage
            ? tensor_over(
                  c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(
                      same_storage->cpu.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl()),
                  hpu, c10::DispatchKey::CPU)
            : tensor_over(cpu_storage_over(storage), hpu, c10::DispatchKey::CPU);
    entries_.push_back({std::move(hpu), std::move(cpu), argument});
    return entries_.back().cpu;
  }

  const c10::SmallVectorImpl<Entry>& entries() const {
    return entries_;
  }

  const Entry* of_argument(size_t argument) const {
    for (const Entry& entry : entries_) {
      if (entry.argument == argument) {
        return &entry;
      }
    }
    return nullptr;
  }

 private:
  static constexpr size_t kScan = 24;
  c10::SmallVector<Entry, 6> entries_;
  ska::flat_hash_map<c10::StorageImpl*, size_t> by_storage_;
};

struct Call {
  const Operator& op;
  Aliases aliases;
  c10::SmallVector<std::pair<at::Tensor, size_t>, 2> foreign;  // tensors of other devices, and their argument
  c10::DeviceIndex device = -1;
  uint32_t strict = 0;

  const std::string& argument_name(size_t i) const {
    return op.schema->arguments()[i].name();
  }

  at::Tensor convert(at::Tensor&& tensor, size_t argument) {
    if (!tensor.defined()) {
      return std::move(tensor);
    }
    if (C10_UNLIKELY(!tensor.is_hpu())) {
      foreign.emplace_back(tensor, argument);
      return std::move(tensor);
    }
    const c10::DeviceIndex index = tensor.device().index();
    if (device < 0) {
      device = index;
    } else if (C10_UNLIKELY(device != index) && op.name != "_foreach_copy_") {
      raise_mixed_devices(
          op.name, argument_name(argument), {c10::DeviceType::HPU, device}, {c10::DeviceType::HPU, index});
    }
    if (C10_UNLIKELY(strict & kStrictDtypes) && op.computes) {
      check_dtype(op.name.c_str(), tensor.scalar_type());
    }
    return aliases.add(std::move(tensor), argument);
  }
};

void check_foreign(const Call& call, const at::Tensor& tensor, size_t argument) {
  const c10::Device hpu(c10::DeviceType::HPU, call.device);
  const bool written = call.op.written[argument];
  const bool scalar = tensor.dim() == 0 && tensor.is_cpu() && !written;
  const bool index = call.op.arguments[argument] == Kind::kOptionalTensorList;
  TORCH_CHECK(
      !(call.op.index && argument == 0), "indices should be either on ", tensor.device(),
      " or on the same device as the indexed tensor (", tensor.device(), "), but an index is on ", hpu);
  const bool legal = call.op.index ? index : call.op.mixes_devices;
  if (!scalar && !legal && (written || !tensor.is_cpu() || !tolerate_cpu_tensors())) {
    raise_mixed_devices(call.op.name, call.argument_name(argument), hpu, tensor.device());
  }
  // Python numbers arrive as 0-dim CPU tensors too, marked as such: those are constants.
  if ((call.strict & kStrictDevices) && !tensor.unsafeGetTensorImpl()->is_wrapped_number()) {
    raise_strict_cpu_tensor(call.op.name, call.argument_name(argument), tensor);
  }
}

void convert_arguments(Call& call, IValue* arguments) {
  const Operator& op = call.op;
  bool has_generator = false;
  c10::DeviceIndex asked = -1;
  for (size_t i = 0; i < op.arguments.size(); ++i) {
    IValue& value = arguments[i];
    switch (op.arguments[i]) {
      case Kind::kOther:
        break;
      case Kind::kTensor:
        if (value.isTensor()) {
          value = call.convert(std::move(value).toTensor(), i);
        }
        break;
      case Kind::kTensorList:
        if (value.isTensorList()) {
          auto tensors = value.toTensorVector();
          value = IValue();
          for (at::Tensor& tensor : tensors) {
            tensor = call.convert(std::move(tensor), i);
          }
          value = IValue(std::move(tensors));
        }
        break;
      case Kind::kOptionalTensorList:
        if (value.isList()) {
          c10::List<std::optional<at::Tensor>> tensors;
          for (const IValue& element : value.toListRef()) {
            tensors.push_back(
                element.isTensor()
                    ? std::optional<at::Tensor>(call.convert(at::Tensor(element.toTensor()), i))
                    : std::nullopt);
          }
          value = IValue(std::move(tensors));
        }
        break;
      case Kind::kGenerator:
        has_generator = true;
        break;
      case Kind::kDevice:
        if (value.isDevice() && value.toDevice().is_hpu()) {
          asked = normalise(value.toDevice()).index();
          value = c10::Device(c10::kCPU);
        }
        break;
    }
  }
  if (C10_UNLIKELY(!call.foreign.empty()) && call.device >= 0) {
    for (const auto& [tensor, argument] : call.foreign) {
      check_foreign(call, tensor, argument);
    }
  }
  const bool only_foreign = call.device < 0 && !call.foreign.empty();
  if (C10_UNLIKELY(call.device < 0)) {
    call.device = asked >= 0 ? asked : current_device();
  }
  if (C10_UNLIKELY(has_generator)) {
    for (size_t i = 0; i < op.arguments.size(); ++i) {
      if (op.arguments[i] != Kind::kGenerator) {
        continue;
      }
      if (arguments[i].isNone()) {
        arguments[i] = cpu_generator(default_generator(call.device));
        continue;
      }
      const at::Generator generator = arguments[i].toGenerator();
      TORCH_CHECK(
          generator.device().type() == c10::DeviceType::HPU,
          "Expected a 'hpu' device type for generator but found '", generator.device().type(), "'");
      // A CPU tensor and nothing but this generator to bring the call here.
      TORCH_CHECK(
          !only_foreign, "Expected a '", call.foreign.front().first.device().type(),
          "' device type for generator but found 'hpu'");
      arguments[i] = cpu_generator(generator);
    }
  }
}

void convert_results(const Call& call, torch::jit::Stack* stack) {
  const Operator& op = call.op;
  const c10::Device device(c10::DeviceType::HPU, call.device);
  const size_t count = op.returned_argument.size();
  for (size_t i = 0; i < count; ++i) {
    IValue& value = (*stack)[stack->size() - count + i];
    const int source = op.returned_argument[i];
    if (source >= 0 && value.isTensor()) {
      if (const auto* entry = call.aliases.of_argument(static_cast<size_t>(source))) {
        value = entry->hpu;
        continue;
      }
    }
    if (value.isTensor()) {
      at::Tensor tensor = std::move(value).toTensor();
      value = hpu_alias(tensor, device);
    } else if (value.isTensorList()) {
      auto tensors = std::move(value).toTensorVector();
      for (at::Tensor& tensor : tensors) {
        tensor = hpu_alias(tensor, device);
      }
      value = IValue(std::move(tensors));
    }
  }
}

bool indexes_by_mask(const Operator& op, const IValue* arguments) {
  if (op.name != "index.Tensor" && op.name != "_unsafe_index.Tensor") {
    return false;
  }
  for (const IValue& index : arguments[1].toListRef()) {
    if (index.isTensor() && index.toTensor().defined() &&
        (index.toTensor().scalar_type() == at::kBool || index.toTensor().scalar_type() == at::kByte)) {
      return true;
    }
  }
  return false;
}

void fallback(const c10::OperatorHandle& handle, c10::DispatchKeySet, torch::jit::Stack* stack) {
  Call call{describe_once(handle), {}, {}};
  const Operator& op = call.op;
  if (C10_UNLIKELY(op.collective)) {
    run_collective(handle, op.name, stack);
    return;
  }
  call.strict = strict();
  IValue* arguments = stack->data() + (stack->size() - op.arguments.size());
  const bool counted = C10_UNLIKELY(accounting());
  const bool by_mask = C10_UNLIKELY(op.index && (counted || call.strict)) && indexes_by_mask(op, arguments);
  if (C10_UNLIKELY((call.strict & kStrictFallbackOps) && (op.host_on_hardware || by_mask))) {
    check_fallback_op(op.name.c_str());
  }
  if (counted && !op.is_item) {
    account_operator(op.name, op.hash, arguments, op.arguments.size());
  }
  convert_arguments(call, arguments);
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    handle.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  }
  if (op.writes) {
    for (const auto& entry : call.aliases.entries()) {
      if (op.written[entry.argument]) {
        sync_after_write(entry.hpu, entry.cpu);
      }
    }
  }
  convert_results(call, stack);
  if (counted && (op.flush || by_mask)) {
    account_flush(op.flush ? op.flush : "data-dependent operator");
  }
}

// Typed kernels of kernels.cpp; an explicit registration of the fallback would clash with them.
bool has_typed_kernel(const c10::OperatorName& name) {
  return c10::Dispatcher::singleton().findOp(name)->hasKernelForDispatchKey(c10::DispatchKey::HPU);
}

void no_sparse(const c10::OperatorHandle& handle, c10::DispatchKeySet, torch::jit::Stack*) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      false, "The HPU emulator holds dense tensors only: ", handle.schema().name(),
      " was called with a sparse HPU tensor. Keep sparse tensors on the CPU.");
}

TORCH_LIBRARY_IMPL(_, HPU, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}
TORCH_LIBRARY_IMPL(_, SparseHPU, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&no_sparse>());
}
TORCH_LIBRARY_IMPL(_, SparseCsrHPU, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&no_sparse>());
}

}  // namespace

// Composite kernels outrank a fallback. Where the CPU has a kernel of its own, or a composite one that would
// only allocate and call the out= form, the fallback is registered operator by operator: same numbers as the
// CPU, and faster.
int64_t register_explicit_fallbacks() {
  static auto* library = new torch::Library(
      torch::Library::IMPL, "aten", c10::make_optional(c10::DispatchKey::HPU), __FILE__, __LINE__);
  auto& dispatcher = c10::Dispatcher::singleton();
  auto names =
      dispatcher.getRegistrationsForDispatchKey(c10::DispatchKey::CompositeExplicitAutogradNonFunctional);
  for (auto& name : dispatcher.getRegistrationsForDispatchKey(c10::DispatchKey::CompositeExplicitAutograd)) {
    const bool on_cpu = dispatcher.findOp(name)->hasKernelForDispatchKey(c10::DispatchKey::CPU);
    if (on_cpu || name.name.rfind("aten::_foreach_", 0) == 0) {
      names.push_back(name);
    }
  }
  // Implicit composites whose own CPU kernels round differently in bfloat16; their derivatives are formulas
  // of their own.
  names.emplace_back("aten::silu_backward", "");
  names.emplace_back("aten::mish_backward", "");
  int64_t count = 0;
  for (const auto& name : names) {
    if (name.name.rfind("aten::", 0) != 0 || has_typed_kernel(name)) {
      continue;
    }
    const std::string text = name.overload_name.empty() ? name.name : name.name + "." + name.overload_name;
    library->impl(text.c_str(), torch::CppFunction::makeFromBoxedFunction<&fallback>());
    ++count;
  }
  return count;
}

}  // namespace hpu_emulator
