// What bridge.cc and nccl.cc share: the objects behind the C face, and the border no exception crosses.
#pragma once

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <string>

#include <ATen/ATen.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <torch/csrc/distributed/c10d/Work.hpp>

#include "bridge.h"

struct sluice_store {
  c10::intrusive_ptr<c10d::Store> store;
};

struct sluice_work {
  c10::intrusive_ptr<c10d::Work> work;
};

// A backend, and where backends differ.
struct sluice_group {
  virtual ~sluice_group() = default;
  virtual c10d::Backend& backend() = 0;
  // The next collective matches only collectives that other ranks launch under the same tag.
  virtual void tag_next(uint32_t /*tag*/) {}
  // Called with every operation that was launched.
  virtual void launched(c10d::Work& /*work*/) {}
  // Waits at most `timeout`, and not beyond abort(); false when the operation has not finished. Throws what it threw.
  virtual bool wait(c10d::Work& work, std::chrono::milliseconds timeout) = 0;
  virtual void abort() = 0;
  // Throws when the connection to a peer is known to be closed.
  virtual void check() {}

  // c10d counts its operations without a lock, so whoever launches one holds this. Launching never blocks.
  std::mutex launching;
};

inline char* copy_message(const char* text) {
  char* copy = static_cast<char*>(std::malloc(std::strlen(text) + 1));
  if (copy != nullptr) {
    std::strcpy(copy, text);
  }
  return copy;
}

// Runs `body`, which returns a status, and turns whatever it throws into SLUICE_FAILED and a message.
//
// No catch clause here or in bridge.cc names a type of torch's: tables of catch clauses are kept in programs that never
// call these functions, and would make them need libtorch.
template <typename Body>
int guarded(char** message, Body&& body) noexcept {
  try {
    return body();
  } catch (const std::exception& error) {
    const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
    *message = copy_message(torch_error != nullptr ? torch_error->what_without_backtrace() : error.what());
  } catch (...) {
    *message = copy_message("an exception that is no std::exception");
  }
  return SLUICE_FAILED;
}
