// Which graphs a Gaudi would have compiled. See accounting.cpp.
#pragma once

#include <ATen/core/ivalue.h>
#include <c10/core/SymInt.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace hpu_emulator {

extern std::atomic<bool> g_accounting;

inline bool accounting() noexcept {
  return g_accounting.load(std::memory_order_relaxed);
}

struct Graph {
  int64_t id = 0;
  int64_t ops = 0;
  int64_t runs = 0;
  int64_t first_flush = 0;
  std::string cause_op;
  std::vector<std::vector<int64_t>> cause_shapes;
  std::vector<std::string> cause_dtypes;
  std::string location;
  std::string flush_reason;
};
struct Counts {
  int64_t flushes = 0;
  int64_t distinct = 0;
  int64_t operators = 0;
};

using Locator = std::function<std::string(const std::string& op)>;

// lazy: a graph is what runs between two flushes; otherwise each operator call is a graph of its own.
void accounting_start(bool lazy);
void accounting_stop();
void accounting_reset();
void accounting_set_locator(Locator locator);
std::vector<Graph> accounting_graphs();
Counts accounting_counts();

// `name` must outlive the process (it is an operator's interned name); only call these while accounting().
void account_operator(
    const std::string& name, uint64_t name_hash, const c10::IValue* arguments, size_t count);
void account_flush(const char* reason);
uint64_t hash_text(const std::string& text) noexcept;

}  // namespace hpu_emulator
