// What the fallback knows of an operator from its schema and its name. See operator.cpp.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/util/SmallVector.h>

#include <string>

namespace hpu_emulator {

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
  bool computes = true;        // false: creation and filling, which every dtype may do
  bool mixes_devices = false;  // CPU indices or lengths beside HPU tensors are legal
  bool index = false;
  bool host_on_hardware = false;
  const char* flush = nullptr;  // ends a graph: the host must see the result
  bool is_item = false;
};

// Described at the first call; the reference is valid for good.
const Operator& describe_once(const c10::OperatorHandle& handle);

}  // namespace hpu_emulator
