// Counting the graphs a Gaudi would compile. In lazy mode the hardware's software collects operators until
// something needs a result (a flush) and compiles the sequence unless it has compiled an equal one before.
// Equality is a rolling hash over operator, sizes, strides, offsets, dtypes and integer arguments. The hashes
// of all prefixes seen so far are kept: the first operator that leads to an unknown prefix is what made a
// graph new, its cause.
#include "accounting.h"

#include <ATen/core/Tensor.h>
#include <c10/util/flat_hash_map.h>

#include <memory>
#include <mutex>

namespace hpu_emulator {

std::atomic<bool> g_accounting{false};

namespace {

constexpr uint64_t kStart = 0x9e3779b97f4a7c15ULL;

inline uint64_t mix(uint64_t hash, uint64_t value) noexcept {
  hash ^= value + 0x9e3779b97f4a7c15ULL + (hash << 6) + (hash >> 2);
  hash *= 0xff51afd7ed558ccdULL;
  return hash ^ (hash >> 33);
}

struct IdentityHash {
  size_t operator()(uint64_t value) const noexcept {
    return value;
  }
};

struct Cause {
  bool known = false;
  std::string op;
  std::vector<std::vector<int64_t>> shapes;
  std::vector<std::string> dtypes;
  std::string location;
};

struct Recorder {
  std::mutex mutex;
  bool lazy = true;
  uint64_t hash = kStart;
  int64_t length = 0;
  bool diverged = false;
  uint64_t generation = 0;  // distinguishes the graph being collected from later ones
  Cause cause;
  Counts counts;
  ska::flat_hash_map<uint64_t, char, IdentityHash> prefixes;
  ska::flat_hash_map<uint64_t, size_t, IdentityHash> index_of;
  std::vector<Graph> graphs;
  std::shared_ptr<Locator> locator;

  void restart() {
    hash = kStart;
    length = 0;
    diverged = false;
    cause = Cause();
    ++generation;
  }
};

Recorder& recorder() {
  static auto* instance = new Recorder();
  return *instance;
}

uint64_t hash_tensor(uint64_t hash, const at::Tensor& tensor) {
  if (!tensor.defined()) {
    return mix(hash, 1);
  }
  const c10::TensorImpl* impl = tensor.unsafeGetTensorImpl();
  hash =
      mix(hash, (static_cast<uint64_t>(c10::typeMetaToScalarType(impl->dtype())) << 8) |
                    static_cast<uint64_t>(impl->dim()));
  hash =
      mix(hash,
          static_cast<uint64_t>(impl->storage_offset()) << 1 | (impl->device_type() == c10::DeviceType::HPU));
  const auto sizes = impl->sizes();
  const auto strides = impl->strides();
  for (size_t i = 0; i < sizes.size(); ++i) {
    hash = mix(hash, static_cast<uint64_t>(sizes[i]) * 0x100000001b3ULL ^ static_cast<uint64_t>(strides[i]));
  }
  return hash;
}

uint64_t hash_value(uint64_t hash, const c10::IValue& value) {
  if (value.isTensor()) {
    return hash_tensor(hash, value.toTensor());
  }
  if (value.isInt()) {
    return mix(hash, static_cast<uint64_t>(value.toInt()));
  }
  if (value.isBool()) {
    return mix(hash, value.toBool() ? 3 : 2);
  }
  if (value.isList()) {
    const auto elements = value.toListRef();
    hash = mix(hash, elements.size());
    for (const c10::IValue& element : elements) {
      hash = hash_value(hash, element);
    }
    return hash;
  }
  return mix(hash, value.isNone() ? 5 : 7);  // floating-point scalars do not make a graph new
}

void describe(const c10::IValue& value, Cause& cause) {
  if (value.isTensor() && value.toTensor().defined()) {
    cause.shapes.push_back(value.toTensor().sizes().vec());
    cause.dtypes.emplace_back(c10::toString(value.toTensor().scalar_type()));
  } else if (value.isList()) {
    for (const c10::IValue& element : value.toListRef()) {
      if (element.isTensor()) {
        describe(element, cause);
      }
    }
  }
}

// Closes the graph being collected; the mutex is held.
void close(Recorder& r, const char* reason) {
  if (r.length == 0) {
    return;
  }
  ++r.counts.flushes;
  const auto found = r.index_of.find(r.hash);
  if (found != r.index_of.end()) {
    ++r.graphs[found->second].runs;
  } else {
    r.index_of.emplace(r.hash, r.graphs.size());
    Graph graph;
    graph.id = static_cast<int64_t>(r.graphs.size());
    graph.ops = r.length;
    graph.runs = 1;
    graph.first_flush = r.counts.flushes;
    graph.cause_op = r.cause.op;
    graph.cause_shapes = r.cause.shapes;
    graph.cause_dtypes = r.cause.dtypes;
    graph.location = r.cause.location;
    graph.flush_reason = reason;
    r.graphs.push_back(std::move(graph));
    r.counts.distinct = static_cast<int64_t>(r.graphs.size());
  }
  r.restart();
}

}  // namespace

uint64_t hash_text(const std::string& text) noexcept {
  uint64_t hash = 0xcbf29ce484222325ULL;
  for (const char c : text) {
    hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ULL;
  }
  return hash;
}

void account_operator(
    const std::string& name, uint64_t name_hash, const c10::IValue* arguments, size_t count) {
  uint64_t hash = name_hash;
  for (size_t i = 0; i < count; ++i) {
    hash = hash_value(hash, arguments[i]);
  }
  Recorder& r = recorder();
  std::shared_ptr<Locator> locator;
  uint64_t generation = 0;
  {
    std::lock_guard<std::mutex> lock(r.mutex);
    ++r.counts.operators;
    ++r.length;
    r.hash = mix(r.hash, hash);
    if (r.prefixes.emplace(r.hash, 0).second && !r.diverged) {
      r.diverged = true;
      r.cause.known = true;
      r.cause.op = name;
      for (size_t i = 0; i < count; ++i) {
        describe(arguments[i], r.cause);
      }
      locator = r.locator;
      generation = r.generation;
    }
    if (!locator) {
      if (!r.lazy) {
        close(r, "operator");
      }
      return;
    }
  }
  // Outside the lock: the locator takes the GIL, whose holder may be waiting for the lock.
  std::string location = (*locator)(name);
  std::lock_guard<std::mutex> lock(r.mutex);
  if (r.generation == generation) {
    r.cause.location = std::move(location);
    if (!r.lazy) {
      close(r, "operator");
    }
  }
}

void account_flush(const char* reason) {
  Recorder& r = recorder();
  std::lock_guard<std::mutex> lock(r.mutex);
  close(r, reason);
}

void accounting_start(bool lazy) {
  Recorder& r = recorder();
  std::lock_guard<std::mutex> lock(r.mutex);
  r.restart();
  r.lazy = lazy;
  g_accounting = true;
}

void accounting_stop() {
  Recorder& r = recorder();
  std::lock_guard<std::mutex> lock(r.mutex);
  close(r, "end of accounting");
  g_accounting = false;
}

void accounting_reset() {
  Recorder& r = recorder();
  std::lock_guard<std::mutex> lock(r.mutex);
  r.restart();
  r.counts = Counts();
  r.prefixes.clear();
  r.index_of.clear();
  r.graphs.clear();
}

void accounting_set_locator(Locator locator) {
  Recorder& r = recorder();
  std::lock_guard<std::mutex> lock(r.mutex);
  r.locator = locator ? std::make_shared<Locator>(std::move(locator)) : nullptr;
}

std::vector<Graph> accounting_graphs() {
  Recorder& r = recorder();
  std::lock_guard<std::mutex> lock(r.mutex);
  return r.graphs;
}

Counts accounting_counts() {
  Recorder& r = recorder();
  std::lock_guard<std::mutex> lock(r.mutex);
  return r.counts;
}

}  // namespace hpu_emulator
