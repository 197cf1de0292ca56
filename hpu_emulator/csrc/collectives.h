// Collectives on HPU tensors. See collectives.cpp.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <string>

namespace hpu_emulator {

// Runs a c10d operator called with HPU tensors.
void run_collective(const c10::OperatorHandle& handle, const std::string& name, torch::jit::Stack* stack);

// The backend `hccl`, which lets `gloo` (a CPU backend over the same ranks) do the work.
c10::intrusive_ptr<c10d::Backend> create_hccl(
    const c10::intrusive_ptr<c10d::Backend>& gloo, int64_t timeout_ms);

}  // namespace hpu_emulator
