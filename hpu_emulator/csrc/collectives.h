// Collectives on HPU tensors. See collectives.cpp.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

#include <string>

namespace hpu_emulator {

// Runs a c10d operator called with HPU tensors.
void run_collective(const c10::OperatorHandle& handle, const std::string& name, torch::jit::Stack* stack);

}  // namespace hpu_emulator
