// Describes operators for the fallback: which arguments hold tensors, which are written, what hardware does
// differently.
#include "operator.h"

#include "accounting.h"
#include "emulator.h"

#include <c10/util/flat_hash_map.h>

#include <algorithm>
#include <mutex>
#include <string_view>

namespace hpu_emulator {
namespace {

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
                     element->castRaw<c10::OptionalType>()->getElementType()->kind() ==
                         c10::TypeKind::TensorType
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
      base, {"fill_",
             "zero_",
             "arange",
             "range",
             "linspace",
             "randperm",
             "eye",
             "full",
             "zeros",
             "ones",
             "_local_scalar_dense",
             "equal",
             "is_set_to",
             "_foreach_copy_",
             "cat",
             "_pin_memory",
             "normal_",
             "uniform_",
             "random_",
             "is_same_size"});
  op.index = one_of(
      base, {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put",
             "_unsafe_masked_index", "_unsafe_masked_index_put_accumulate"});
  op.mixes_devices =
      op.index || one_of(
                      base, {"_pack_padded_sequence", "_pack_padded_sequence_backward", "_ctc_loss",
                             "_ctc_loss_backward", "_foreach_copy_", "_embedding_bag_backward", "set_"});
  op.host_on_hardware = op.name != "repeat_interleave.self_int" && may_run_on_cpu_on_hardware(base);
  op.is_item = base == "_local_scalar_dense";
  if (op.is_item) {
    op.flush = "item";
  } else if (
      one_of(
          base, {"nonzero", "equal", "masked_select", "unique_consecutive", "unique_dim", "_unique",
                 "_unique2", "unique_dim_consecutive", "bincount", "is_nonzero"}) ||
      op.name == "repeat_interleave.Tensor") {
    op.flush = "data-dependent operator";
  }
  return op;
}

}  // namespace

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

}  // namespace hpu_emulator
