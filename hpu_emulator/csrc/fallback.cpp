// The kernel behind nearly every operator: look at the HPU tensors as CPU tensors over the same memory, run the CPU
// kernel, and give its results back as HPU tensors. Nothing is copied.
#include "accounting.h"
#include "collectives.h"
#include "emulator.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/List.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <c10/util/SmallVector.h>
#include <c10/util/flat_hash_map.h>
#include <torch/library.h>

#include <algorithm>
#include <mutex>
#include <string_view>

namespace hpu_emulator {
namespace {

using c10::IValue;

enum class Kind : uint8_t { kOther, kTensor, kTensorList, kOptionalTensorList, kGenerator, kDevice };

// What the schema of an operator says, worked out once.
struct Operator {
  std::string name;
  uint64_t hash = 0;
  const c10::FunctionSchema* schema = nullptr;
  c10::SmallVector<Kind, 8> arguments;
  c10::SmallVector<bool, 8> written;
  c10::SmallVector<int, 4> returned_argument;  // -1: a new tensor or a view
  bool writes = false;
  bool collective = false;
  bool computes = true;            // false: creation and filling, which every dtype may do
  bool mixes_devices = false;      // CPU indices or lengths beside HPU tensors are legal
  bool index = false;
  bool host_on_hardware = false;
  const char* flush = nullptr;     // ends a graph: the host must see the result
  bool is_item = false;
};

bool one_of(std::string_view name, std::initializer_list<std::string_view> names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

Kind kind_of(const c10::Argument& argument) {
  c10::TypePtr type = argument.type();
  const bool optional = type->kind() == c10::TypeKind::OptionalType;
  if (optional) {
    type = type->castRaw<c10::OptionalType>()->getElementType();
  }
  switch (type->kind()) {
    case c10::TypeKind::TensorType:
      return Kind::kTensor;
    case c10::TypeKind::GeneratorType:
      return Kind::kGenerator;
    case c10::TypeKind::DeviceObjType:
      return Kind::kDevice;
    case c10::TypeKind::ListType: {
      const auto element = type->castRaw<c10::ListType>()->getElementType();
      if (element->kind() == c10::TypeKind::TensorType) {
        return Kind::kTensorList;
      }
      return element->kind() == c10::TypeKind::OptionalType &&
              element->castRaw<c10::OptionalType>()->getElementType()->kind() == c10::TypeKind::TensorType
          ? Kind::kOptionalTensorList
          : Kind::kOther;
    }
    default:
      return Kind::kOther;
  }
}

Operator describe(const c10::OperatorHandle& handle) {
  const c10::FunctionSchema& schema = handle.schema();
  Operator op;
  op.schema = &schema;
  const std::string& full = schema.name();
  op.name = full.substr(0, 6) == "aten::" ? full.substr(6) : full;
  const std::string base = op.name;
  if (!schema.overload_name().empty()) {
    op.name += "." + schema.overload_name();
  }
  op.hash = hash_text(full + "." + schema.overload_name());
  for (const auto& argument : schema.arguments()) {
    op.arguments.push_back(kind_of(argument));
    const bool written = argument.alias_info() && argument.alias_info()->isWrite();
    op.written.push_back(written);
    op.writes = op.writes || written;
  }
  for (const auto& returned : schema.returns()) {
    int source = -1;
    if (returned.alias_info() && returned.alias_info()->isWrite()) {
      for (size_t i = 0; i < schema.arguments().size(); ++i) {
        const auto* info = schema.arguments()[i].alias_info();
        if (info && info->isWrite() && info->beforeSets() == returned.alias_info()->beforeSets()) {
          source = static_cast<int>(i);
        }
      }
    }
    op.returned_argument.push_back(source);
  }
  op.collective = full.rfind("c10d::", 0) == 0;
  op.computes = !one_of(
      base, {"fill_", "zero_", "arange", "range", "linspace", "randperm", "eye", "full", "zeros", "ones", "_local_scalar_dense", "equal", "is_set_to",
             "_foreach_copy_", "cat", "_pin_memory", "normal_", "uniform_", "random_", "is_same_size"});
  op.index = one_of(
      base, {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put",
             "_unsafe_masked_index", "_unsafe_masked_index_put_accumulate"});
  op.mixes_devices = op.index ||
      one_of(base, {"_pack_padded_sequence", "_pack_padded_sequence_backward", "_ctc_loss", "_ctc_loss_backward",
                    "_foreach_copy_", "_embedding_bag_backward", "set_"});
  op.host_on_hardware = op.name != "repeat_interleave.self_int" && may_run_on_cpu_on_hardware(base);
  op.is_item = base == "_local_scalar_dense";
  if (op.is_item) {
    op.flush = "item";
  } else if (one_of(base, {"nonzero", "equal", "masked_select", "unique_consecutive", "unique_dim", "_unique",
                           "_unique2", "unique_dim_consecutive", "bincount", "is_nonzero"}) ||
             op.name == "repeat_interleave.Tensor") {
    op.flush = "data-dependent operator";
  }
  return op;
}

const Operator& describe_once(const c10::OperatorHandle& handle) {
  thread_local ska::flat_hash_map<const void*, const Operator*> known;
  const void* key = &handle.schema();
  const auto found = known.find(key);
  if (C10_LIKELY(found != known.end())) {
    return *found->second;
  }
  // Shared between threads and never freed: accounting keeps pointers to the names.
  static auto* mutex = new std::mutex();
  static auto* all = new ska::flat_hash_map<const void*, const Operator*>();
  std::lock_guard<std::mutex> lock(*mutex);
  const Operator*& op = (*all)[key];
  if (op == nullptr) {
    op = new Operator(describe(handle));
  }
  known.emplace(key, op);
  return *op;
}

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
          by_storage_.emplace(entries_[i].hpu.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl(), i);
        }
      }
      const auto found = by_storage_.find(storage);
      if (found != by_storage_.end()) {
        same_storage = &entries_[found->second];
      } else {
        by_storage_.emplace(storage, entries_.size());
      }
    }
    at::Tensor cpu = same_storage
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
                element.isTensor() ? std::optional<at::Tensor>(call.convert(at::Tensor(element.toTensor()), i)) : std::nullopt);
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
          generator.device().type() == c10::DeviceType::HPU, "Expected a 'hpu' device type for generator but found '",
          generator.device().type(), "'");
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

void fallback(const c10::OperatorHandle& handle, c10::DispatchKeySet, torch::jit::Stack* stack) {
  Call call{describe_once(handle), {}, {}};
  const Operator& op = call.op;
  if (C10_UNLIKELY(op.collective)) {
    run_collective(handle, op.name, stack);
    return;
  }
  call.strict = strict();
  IValue* arguments = stack->data() + (stack->size() - op.arguments.size());
  if (C10_UNLIKELY((call.strict & kStrictFallbackOps) && op.host_on_hardware)) {
    check_fallback_op(op.name.c_str());
  }
  const bool counted = C10_UNLIKELY(accounting());
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
  if (counted && op.flush) {
    account_flush(op.flush);
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

// Composite kernels outrank a fallback. Where the CPU has a kernel of its own, or a composite one that would only
// allocate and call the out= form, the fallback is registered operator by operator: same numbers as the CPU, and faster.
int64_t register_explicit_fallbacks() {
  static auto* library = new torch::Library(
      torch::Library::IMPL, "aten", c10::make_optional(c10::DispatchKey::HPU), __FILE__, __LINE__);
  auto& dispatcher = c10::Dispatcher::singleton();
  auto names = dispatcher.getRegistrationsForDispatchKey(c10::DispatchKey::CompositeExplicitAutogradNonFunctional);
  for (auto& name : dispatcher.getRegistrationsForDispatchKey(c10::DispatchKey::CompositeExplicitAutograd)) {
    const bool on_cpu = dispatcher.findOp(name)->hasKernelForDispatchKey(c10::DispatchKey::CPU);
    if (on_cpu || name.name.rfind("aten::_foreach_", 0) == 0) {
      names.push_back(name);
    }
  }
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
