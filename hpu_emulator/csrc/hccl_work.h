// One collective under way. See collectives.cpp.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <torch/csrc/distributed/c10d/Work.hpp>

#include <algorithm>
#include <functional>
#include <vector>

namespace hpu_emulator {

using Tensors = std::vector<at::Tensor>;
using Finish = std::function<void()>;

// Gloo's work, and what is left to do with its result. Futures of it hold HPU tensors.
class HcclWork final : public c10d::Work {
 public:
  HcclWork(
      int rank, c10d::OpType op, std::vector<c10::intrusive_ptr<c10d::Work>> parts, Tensors outputs,
      Finish finish)
      : c10d::Work(rank, op), parts_(std::move(parts)), outputs_(std::move(outputs)) {
    if (op == c10d::OpType::SEND || op == c10d::OpType::RECV || op == c10d::OpType::RECVANYSOURCE) {
      return;  // gloo gives these no future
    }
    std::vector<c10::Device> devices;
    for (const at::Tensor& tensor : outputs_) {
      if (std::find(devices.begin(), devices.end(), tensor.device()) == devices.end()) {
        devices.push_back(tensor.device());
      }
    }
    future_ =
        c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()), devices);
    c10::List<c10::intrusive_ptr<c10::ivalue::Future>> pending(c10::FutureType::create(c10::AnyType::get()));
    for (const auto& part : parts_) {
      pending.push_back(part->getFuture());
    }
    c10::collectAll(pending)->addCallback(
        [future = future_, outputs = outputs_, finish = std::move(finish)](c10::ivalue::Future& done) {
          if (done.hasError()) {
            future->setError(done.exception_ptr());
            return;
          }
          try {
            if (finish) {
              const at::AutoDispatchBelowADInplaceOrView guard;
              finish();
            }
            future->markCompleted(c10::IValue(outputs));
          } catch (...) {
            future->setErrorIfNeeded(std::current_exception());
          }
        });
  }

  bool isCompleted() override {
    return future_ ? future_->completed() : parts_.front()->isCompleted();
  }
  bool isSuccess() const override {
    return future_ ? future_->completed() && !future_->hasError() : parts_.front()->isSuccess();
  }
  std::exception_ptr exception() const override {
    return future_ ? (future_->hasError() ? future_->exception_ptr() : nullptr) : parts_.front()->exception();
  }
  int sourceRank() const override {
    return parts_.front()->sourceRank();
  }
  Tensors result() override {
    return outputs_;
  }
  void synchronize() override {
  }
  bool wait(std::chrono::milliseconds timeout) override {
    for (const auto& part : parts_) {
      part->wait(timeout);
    }
    if (future_) {
      future_->waitAndThrow();
    }
    return true;
  }
  void abort() override {
    parts_.front()->abort();
  }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override {
    TORCH_CHECK_NOT_IMPLEMENTED(future_, "hccl (emulated): point-to-point operations have no future");
    return future_;
  }

 private:
  std::vector<c10::intrusive_ptr<c10d::Work>> parts_;
  Tensors outputs_;
  c10::intrusive_ptr<c10::ivalue::Future> future_;
};

}  // namespace hpu_emulator
