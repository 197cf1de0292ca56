// The backend `hccl`: collectives on HPU tensors, done by gloo on the same memory. Where hccl (like NCCL)
// takes what gloo does not, the difference is made up here: concatenated outputs, averages, reduce-scatter,
// lists in all-to-all.
#include "collectives.h"

#include "accounting.h"
#include "emulator.h"
#include "hccl_work.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

namespace hpu_emulator {
namespace {

using at::Tensor;
using c10::intrusive_ptr;
using c10d::Backend;
using c10d::OpType;
using c10d::ReduceOp;
using c10d::Work;

Tensor host(const Tensor& tensor) {
  TORCH_CHECK(
      tensor.is_hpu() && tensor.layout() == at::kStrided, "hccl takes dense HPU tensors, got one on ",
      tensor.device(), " of layout ", tensor.layout());
  return cpu_alias(tensor);
}

Tensors host(const Tensors& tensors) {
  Tensors out;
  for (const Tensor& tensor : tensors) {
    out.push_back(host(tensor));
  }
  return out;
}

const Tensor& single(const Tensors& tensors) {
  TORCH_CHECK(tensors.size() == 1, "hccl takes one tensor a process, got ", tensors.size());
  return tensors.front();
}

class Hccl final : public Backend {
 public:
  Hccl(intrusive_ptr<Backend> gloo, std::chrono::milliseconds timeout)
      : Backend(gloo->getRank(), gloo->getSize()),
        gloo_(std::move(gloo)),
        options_(c10::make_intrusive<Backend::Options>("hccl", timeout)) {
  }

  const std::string getBackendName() const override {
    return "hccl";
  }
  intrusive_ptr<Backend::Options> getBackendOptions() override {
    return options_;
  }
  void setTimeout(std::chrono::milliseconds timeout) override {
    options_->timeout = timeout;
    gloo_->setTimeout(timeout);
  }
  void setSequenceNumberForGroup() override {
    gloo_->setSequenceNumberForGroup();
  }
  uint64_t getSequenceNumberForGroup() override {
    return gloo_->getSequenceNumberForGroup();
  }

  intrusive_ptr<Work> broadcast(Tensors& tensors, const c10d::BroadcastOptions& options) override {
    Tensors cpu{host(single(tensors))};
    return work(OpType::BROADCAST, gloo_->broadcast(cpu, options), tensors);
  }

  intrusive_ptr<Work> allreduce(Tensors& tensors, const c10d::AllreduceOptions& options) override {
    single(tensors);
    return reduce_all(OpType::ALLREDUCE, tensors, options);
  }

  intrusive_ptr<Work> allreduce_coalesced(
      Tensors& tensors, const c10d::AllreduceCoalescedOptions& options) override {
    return reduce_all(OpType::ALLREDUCE_COALESCED, tensors, options);
  }

  intrusive_ptr<Work> reduce(Tensors& tensors, const c10d::ReduceOptions& options) override {
    Tensors cpu{host(single(tensors))};
    c10d::ReduceOptions sum = options;
    Finish finish = as_sum(sum.reduceOp, cpu);
    if (getRank() != options.rootRank) {
      finish = nullptr;
    }
    return work(OpType::REDUCE, gloo_->reduce(cpu, sum), tensors, finish);
  }

  intrusive_ptr<Work> allgather(
      std::vector<Tensors>& outputs, Tensors& inputs, const c10d::AllgatherOptions& options) override {
    TORCH_CHECK(outputs.size() == 1, "hccl takes one list of outputs a process, got ", outputs.size());
    Landing landing;
    auto parts = gather_all(outputs.front(), single(inputs), options, landing);
    return work(OpType::ALLGATHER, std::move(parts), outputs.front(), landing.finish());
  }

  intrusive_ptr<Work> allgather_coalesced(
      std::vector<Tensors>& outputs, Tensors& inputs, const c10d::AllgatherOptions& options) override {
    // outputs[rank][i] is what rank sent as inputs[i].
    Landing landing;
    std::vector<intrusive_ptr<Work>> parts;
    Tensors all;
    for (size_t i = 0; i < inputs.size(); ++i) {
      Tensors column;
      for (const Tensors& row : outputs) {
        column.push_back(row.at(i));
      }
      all.insert(all.end(), column.begin(), column.end());
      append(parts, gather_all(column, inputs[i], options, landing));
    }
    return work(OpType::ALLGATHER_COALESCED, std::move(parts), all, landing.finish());
  }

  intrusive_ptr<Work> _allgather_base(
      Tensor& output, Tensor& input, const c10d::AllgatherOptions& options) override {
    Tensors outputs{output};
    Tensors inputs{input};
    return allgather_into_tensor_coalesced(outputs, inputs, options);
  }

  intrusive_ptr<Work> allgather_into_tensor_coalesced(
      Tensors& outputs, Tensors& inputs, const c10d::AllgatherOptions& options) override {
    Landing landing;
    std::vector<intrusive_ptr<Work>> parts;
    for (size_t i = 0; i < outputs.size(); ++i) {
      TORCH_CHECK(
          outputs[i].numel() == inputs.at(i).numel() * getSize() &&
              outputs[i].scalar_type() == inputs[i].scalar_type(),
          "output tensor size must be equal to world_size times input tensor size, and of its type: got ",
          outputs[i].sizes(), " for ", getSize(), " inputs of ", inputs[i].sizes());
      std::vector<Tensors> chunks{landing.flat(host(outputs[i])).chunk(getSize())};
      Tensors flat{host(inputs[i]).reshape({-1})};
      if (flat.front().numel() > 0) {
        parts.push_back(gloo_->allgather(chunks, flat, options));
      }
    }
    return work(OpType::_ALLGATHER_BASE, std::move(parts), outputs, landing.finish());
  }

  intrusive_ptr<Work> gather(
      std::vector<Tensors>& outputs, Tensors& inputs, const c10d::GatherOptions& options) override {
    std::vector<Tensors> cpu;
    Tensors results;
    for (const Tensors& list : outputs) {
      cpu.push_back(host(list));
      results.insert(results.end(), list.begin(), list.end());
    }
    Tensors in{host(single(inputs))};
    return work(OpType::GATHER, gloo_->gather(cpu, in, options), results);
  }

  intrusive_ptr<Work> scatter(
      Tensors& outputs, std::vector<Tensors>& inputs, const c10d::ScatterOptions& options) override {
    std::vector<Tensors> cpu;
    for (const Tensors& list : inputs) {
      cpu.push_back(host(list));
    }
    Tensors out{host(single(outputs))};
    return work(OpType::SCATTER, gloo_->scatter(out, cpu, options), outputs);
  }

  intrusive_ptr<Work> reduce_scatter(
      Tensors& outputs, std::vector<Tensors>& inputs, const c10d::ReduceScatterOptions& options) override {
    single(outputs);
    TORCH_CHECK(
        inputs.size() == 1 && static_cast<int>(inputs[0].size()) == getSize(),
        "reduce_scatter takes one input for each of the ", getSize(), " ranks");
    Tensors flat;
    int64_t offset = 0;
    for (size_t i = 0; i < inputs[0].size(); ++i) {
      flat.push_back(host(inputs[0][i]).reshape({-1}));
      offset += static_cast<int>(i) < getRank() ? flat.back().numel() : 0;
    }
    Tensors sums{at::cat(flat)};
    return scatter_sums(OpType::REDUCE_SCATTER, outputs, sums, {offset}, options);
  }

  intrusive_ptr<Work> _reduce_scatter_base(
      Tensor& output, Tensor& input, const c10d::ReduceScatterOptions& options) override {
    Tensors outputs{output};
    Tensors inputs{input};
    return reduce_scatter_tensor_coalesced(outputs, inputs, options);
  }

  intrusive_ptr<Work> reduce_scatter_tensor_coalesced(
      Tensors& outputs, Tensors& inputs, const c10d::ReduceScatterOptions& options) override {
    Tensors sums;
    std::vector<int64_t> offsets;
    for (size_t i = 0; i < outputs.size(); ++i) {
      TORCH_CHECK(
          inputs.at(i).numel() == outputs[i].numel() * getSize() &&
              inputs[i].scalar_type() == outputs[i].scalar_type(),
          "input tensor must be the same size as output size times world size, and of its type: got ",
          inputs[i].sizes(), " for ", getSize(), " outputs of ", outputs[i].sizes());
      sums.push_back(host(inputs[i]).reshape({-1}).clone());
      offsets.push_back(outputs[i].numel() * getRank());
    }
    return scatter_sums(OpType::_REDUCE_SCATTER_BASE, outputs, sums, offsets, options);
  }

  intrusive_ptr<Work> alltoall_base(
      Tensor& output, Tensor& input, std::vector<int64_t>& output_splits, std::vector<int64_t>& input_splits,
      const c10d::AllToAllOptions& options) override {
    Tensor out = host(output);
    Tensor in = host(input);
    return work(
        OpType::ALLTOALL_BASE, gloo_->alltoall_base(out, in, output_splits, input_splits, options), {output});
  }

  intrusive_ptr<Work> alltoall(
      Tensors& outputs, Tensors& inputs, const c10d::AllToAllOptions& options) override {
    Tensors flat;
    std::vector<int64_t> sent;
    std::vector<int64_t> received;
    int64_t total = 0;
    for (const Tensor& input : inputs) {
      flat.push_back(host(input).reshape({-1}));
      sent.push_back(input.numel());
    }
    for (const Tensor& output : outputs) {
      received.push_back(output.numel());
      total += output.numel();
    }
    Tensor in = at::cat(flat);
    Tensor out = at::empty({total}, in.options());
    auto part = gloo_->alltoall_base(out, in, received, sent, options);
    return work(OpType::ALLTOALL, part, outputs, [out, targets = host(outputs)] {
      int64_t offset = 0;
      for (const Tensor& target : targets) {
        target.copy_(out.narrow(0, offset, target.numel()).view(target.sizes()));
        offset += target.numel();
      }
    });
  }

  intrusive_ptr<Work> send(Tensors& tensors, int rank, int tag) override {
    Tensors cpu{host(single(tensors))};
    return work(OpType::SEND, gloo_->send(cpu, rank, tag), tensors);
  }
  intrusive_ptr<Work> recv(Tensors& tensors, int rank, int tag) override {
    Tensors cpu{host(single(tensors))};
    return work(OpType::RECV, gloo_->recv(cpu, rank, tag), tensors);
  }
  intrusive_ptr<Work> recvAnysource(Tensors& tensors, int tag) override {
    Tensors cpu{host(single(tensors))};
    return work(OpType::RECVANYSOURCE, gloo_->recvAnysource(cpu, tag), tensors);
  }
  intrusive_ptr<Work> barrier(const c10d::BarrierOptions& options) override {
    return work(OpType::BARRIER, gloo_->barrier(options), {});
  }
  void monitoredBarrier(const c10d::BarrierOptions& options, bool wait_all_ranks) override {
    gloo_->monitoredBarrier(options, wait_all_ranks);
  }

 private:
  // Outputs as flat CPU tensors for gloo to write; those that are not contiguous are copied back at the end.
  struct Landing {
    std::vector<std::pair<Tensor, Tensor>> copies;

    Tensor flat(const Tensor& output) {
      if (output.is_contiguous()) {
        return output.view({-1});
      }
      Tensor dense = output.contiguous();
      copies.emplace_back(output, dense);
      return dense.view({-1});
    }
    Finish finish() const {
      return [copies = copies] {
        for (const auto& [target, source] : copies) {
          target.copy_(source);
        }
      };
    }
  };

  static void append(std::vector<intrusive_ptr<Work>>& to, std::vector<intrusive_ptr<Work>>&& from) {
    to.insert(to.end(), from.begin(), from.end());
  }

  intrusive_ptr<Work> work(
      OpType op, std::vector<intrusive_ptr<Work>> parts, Tensors outputs, Finish finish = nullptr) {
    return c10::make_intrusive<HcclWork>(
        getRank(), op, std::move(parts), std::move(outputs), std::move(finish));
  }
  intrusive_ptr<Work> work(OpType op, intrusive_ptr<Work> part, Tensors outputs, Finish finish = nullptr) {
    return work(op, std::vector<intrusive_ptr<Work>>{std::move(part)}, std::move(outputs), std::move(finish));
  }

  // Gloo neither averages nor scales: turns `op` into a sum, scaling `tensors` now or in the returned
  // function.
  Finish as_sum(ReduceOp& op, const Tensors& tensors) const {
    if (op.op_ == ReduceOp::AVG) {
      op = ReduceOp(ReduceOp::SUM);
      return [tensors, size = getSize()] {
        for (Tensor tensor : tensors) {
          if (at::isIntegralType(tensor.scalar_type(), /*includeBool=*/true)) {
            tensor.floor_divide_(size);
          } else {
            tensor.div_(size);
          }
        }
      };
    }
    if (op.op_ == ReduceOp::PREMUL_SUM) {
      const auto* scale = static_cast<const c10d::PreMulSumSupplement*>(op.supplement_.get());
      const double factor =
          scale->tensor_factor.defined() ? scale->tensor_factor.item<double>() : scale->double_factor;
      for (Tensor tensor : tensors) {
        tensor.mul_(factor);
      }
      op = ReduceOp(ReduceOp::SUM);
    }
    return nullptr;
  }

  intrusive_ptr<Work> reduce_all(OpType op, const Tensors& tensors, c10d::AllreduceOptions options) {
    const Tensors cpu = host(tensors);
    Finish finish = as_sum(options.reduceOp, cpu);
    std::vector<intrusive_ptr<Work>> parts;
    for (const Tensor& tensor : cpu) {
      Tensors one{tensor};
      parts.push_back(gloo_->allreduce(one, options));
    }
    return work(op, std::move(parts), tensors, std::move(finish));
  }

  // sums: copies of the inputs, flat. Output i is what lies at offsets[i] of the reduced sums[i].
  intrusive_ptr<Work> scatter_sums(
      OpType op, const Tensors& outputs, const Tensors& sums, const std::vector<int64_t>& offsets,
      const c10d::ReduceScatterOptions& options) {
    c10d::AllreduceOptions reduce;
    reduce.reduceOp = options.reduceOp;
    reduce.timeout = options.timeout;
    Finish scale = as_sum(reduce.reduceOp, sums);
    std::vector<intrusive_ptr<Work>> parts;
    for (const Tensor& tensor : sums) {
      if (tensor.numel() > 0) {
        Tensors one{tensor};
        parts.push_back(gloo_->allreduce(one, reduce));
      }
    }
    return work(op, std::move(parts), outputs, [scale, sums, offsets, targets = host(outputs)] {
      if (scale) {
        scale();
      }
      for (size_t i = 0; i < targets.size(); ++i) {
        targets[i].copy_(sums[i].narrow(0, offsets[i], targets[i].numel()).view(targets[i].sizes()));
      }
    });
  }

  std::vector<intrusive_ptr<Work>> gather_all(
      const Tensors& outputs, const Tensor& input, const c10d::AllgatherOptions& options, Landing& landing) {
    TORCH_CHECK(
        static_cast<int>(outputs.size()) == getSize(), "all_gather takes one output for each of the ",
        getSize(), " ranks, got ", outputs.size());
    Tensors flat;
    bool even = true;
    for (const Tensor& output : outputs) {
      flat.push_back(landing.flat(host(output)));
      even = even && output.numel() == outputs.front().numel();
    }
    const Tensor in = host(input).reshape({-1});
    if (even) {
      std::vector<Tensors> targets{flat};
      Tensors inputs{in};
      return {gloo_->allgather(targets, inputs, options)};
    }
    // Ranks of different sizes: as many broadcasts, as NCCL does.
    flat[static_cast<size_t>(getRank())].copy_(in);
    std::vector<intrusive_ptr<Work>> parts;
    for (size_t i = 0; i < flat.size(); ++i) {
      c10d::BroadcastOptions broadcast;
      broadcast.rootRank = static_cast<int64_t>(i);
      broadcast.timeout = options.timeout;
      Tensors one{flat[i]};
      parts.push_back(gloo_->broadcast(one, broadcast));
    }
    return parts;
  }

  intrusive_ptr<Backend> gloo_;
  intrusive_ptr<Backend::Options> options_;
};

}  // namespace

// c10d registers its operators for CPU and CUDA; their CPU kernels only look up the group's backend for the
// CPU and call it. They are lent a group whose backend "for the CPU" is the one for the HPU.
void run_collective(const c10::OperatorHandle& handle, const std::string& name, torch::jit::Stack* stack) {
  if (accounting()) {
    account_flush("collective");
  }
  const size_t count = handle.schema().arguments().size();
  for (size_t i = stack->size() - count; i < stack->size(); ++i) {
    c10::IValue& value = (*stack)[i];
    if (value.isCustomClass() &&
        handle.schema().arguments()[i - (stack->size() - count)].name() == "process_group") {
      const auto group = value.toCustomClass<c10d::ProcessGroup>();
      const auto backend = group->getBackend(c10::DeviceType::HPU);
      auto lent = c10::make_intrusive<c10d::ProcessGroup>(group->getRank(), group->getSize());
      lent->setBackend(c10::DeviceType::CPU, c10d::ProcessGroup::BackendType::CUSTOM, backend);
      value = c10::IValue(std::move(lent));
    }
  }
  handle.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
}

intrusive_ptr<Backend> create_hccl(const intrusive_ptr<Backend>& gloo, int64_t timeout_ms) {
  return c10::make_intrusive<Hccl>(gloo, std::chrono::milliseconds(timeout_ms));
}

}  // namespace hpu_emulator
