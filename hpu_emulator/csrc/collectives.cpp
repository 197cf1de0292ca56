// Collectives on HPU tensors.
#include "collectives.h"

#include <c10/util/Exception.h>

namespace hpu_emulator {

void run_collective(const c10::OperatorHandle&, const std::string& name, torch::jit::Stack*) {
  TORCH_CHECK_NOT_IMPLEMENTED(false, name, ": collectives on HPU tensors need the hccl backend");
}

}  // namespace hpu_emulator
