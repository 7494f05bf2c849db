// The store, the operations and the Gloo backend behind bridge.h.
//
// The Gloo headers (Debian's libgloo-dev) are older than the Gloo inside libtorch. That is sound because this file holds
// Gloo's own classes only through the std::shared_ptr that libtorch made: it touches no member, calls no virtual function
// and constructs nothing of Gloo's.
#include "group.hpp"

#include <algorithm>
#include <memory>
#include <vector>

#include <ATen/core/grad_mode.h>
#include <c10/util/Logging.h>
#include <c10/util/env.h>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

using std::chrono::milliseconds;

namespace {

// c10d logs a warning with a stack trace for every time-out and closed connection. All of these come back as errors
// here, so warnings are off, unless the environment says how much libtorch shall log.
void log_errors_only() {
  static const bool once = [] {
    if (!c10::utils::has_env("TORCH_CPP_LOG_LEVEL")) {
      FLAGS_caffe2_log_level = std::max<int>(FLAGS_caffe2_log_level, c10::GLOG_ERROR);
    }
    return true;
  }();
  static_cast<void>(once);
}

c10d::ReduceOp reduce_op(int argument) {
  return static_cast<c10d::ReduceOp::RedOpType>(argument);
}

c10::intrusive_ptr<c10d::Work> launch(sluice_group& group, const sluice_operation& operation) {
  c10d::Backend& backend = group.backend();
  std::vector<at::Tensor> outputs;
  for (size_t i = 0; i < operation.output_count; ++i) {
    outputs.push_back(*static_cast<at::Tensor*>(operation.outputs[i]));
  }
  std::vector<at::Tensor> inputs;
  if (operation.input != nullptr) {
    inputs.push_back(*static_cast<at::Tensor*>(operation.input));
  }

  switch (operation.kind) {
    case SLUICE_SEND:
      return backend.send(inputs, operation.argument, static_cast<int>(operation.tag));
    case SLUICE_RECEIVE:
      return backend.recv(outputs, operation.argument, static_cast<int>(operation.tag));
    default:
      group.tag_next(operation.tag);
  }
  switch (operation.kind) {
    case SLUICE_BROADCAST: {
      c10d::BroadcastOptions options;
      options.rootRank = operation.argument;
      return backend.broadcast(outputs, options);
    }
    case SLUICE_ALL_REDUCE: {
      c10d::AllreduceOptions options;
      options.reduceOp = reduce_op(operation.argument);
      return backend.allreduce(outputs, options);
    }
    case SLUICE_ALL_GATHER: {
      std::vector<std::vector<at::Tensor>> lists{outputs};
      return backend.allgather(lists, inputs);
    }
    case SLUICE_ALL_GATHER_INTO:
      return backend._allgather_base(outputs.at(0), inputs.at(0));
    case SLUICE_ALL_TO_ALL: {
      std::vector<int64_t> equal_parts;
      return backend.alltoall_base(outputs.at(0), inputs.at(0), equal_parts, equal_parts);
    }
    case SLUICE_REDUCE_SCATTER: {
      c10d::ReduceScatterOptions options;
      options.reduceOp = reduce_op(operation.argument);
      return backend._reduce_scatter_base(outputs.at(0), inputs.at(0), options);
    }
    case SLUICE_BARRIER:
      return backend.barrier(group.barrier_options());
    default:
      TORCH_CHECK(false, "no operation has the number ", operation.kind);
  }
}

// ProcessGroupGloo, with the counter it tags its messages with in our hands.
class TaggedGloo final : public c10d::ProcessGroupGloo {
 public:
  using c10d::ProcessGroupGloo::ProcessGroupGloo;

  void tag_next(uint32_t tag) {
    collectiveCounter_ = tag;
  }
};

class GlooGroup final : public sluice_group {
 public:
  explicit GlooGroup(c10::intrusive_ptr<TaggedGloo> gloo) : gloo_(std::move(gloo)) {}

  c10d::Backend& backend() override {
    return *gloo_;
  }

  void tag_next(uint32_t tag) override {
    gloo_->tag_next(tag);
  }

  bool wait(c10d::Work& work, milliseconds timeout) override {
    try {
      // Zero means for ever to c10d.
      work.wait(std::max(timeout, milliseconds(1)));
      return true;
    } catch (const c10::Error&) {
      if (!work.isCompleted()) {
        return false;
      }
      throw;
    }
  }

  // Gloo cannot be aborted from outside, but a receive that times out closes every connection of its context and fails
  // all that is pending on them. So: receive what nobody sends. A pair that is closed already throws; then the next
  // one is tried, and when all are closed nothing is pending any more.
  void abort() override {
    for (int peer = 0; peer < gloo_->getSize(); ++peer) {
      if (peer == gloo_->getRank()) {
        continue;
      }
      try {
        std::vector<at::Tensor> unsent{at::empty({1}, at::kByte)};
        c10::intrusive_ptr<c10d::Work> never;
        {
          std::lock_guard<std::mutex> lock(launching);
          never = gloo_->recv(unsent, peer, kNeverSent);
        }
        never->wait(milliseconds(1));
      } catch (const std::exception&) {
      }
    }
  }

 private:
  static constexpr int kNeverSent = 0x7fffffff;
  c10::intrusive_ptr<TaggedGloo> gloo_;
};

}  // namespace

extern "C" {

void sluice_message_free(char* message) {
  std::free(message);
}

void sluice_bytes_free(uint8_t* bytes) {
  std::free(bytes);
}

int sluice_store_serve(int listen_fd, const char* host, int64_t timeout_ms, sluice_store** out, char** message) {
  return guarded(message, [&] {
    log_errors_only();
    c10d::TCPStoreOptions options;
    options.port = 0;
    options.isServer = true;
    options.waitWorkers = false;
    options.timeout = milliseconds(timeout_ms);
    options.masterListenFd = listen_fd;
    *out = new sluice_store{c10::make_intrusive<c10d::TCPStore>(host, options)};
    return SLUICE_OK;
  });
}

int sluice_store_connect(const char* host, uint16_t port, int64_t timeout_ms, sluice_store** out, char** message) {
  return guarded(message, [&] {
    log_errors_only();
    c10d::TCPStoreOptions options;
    options.port = port;
    options.waitWorkers = false;
    options.timeout = milliseconds(timeout_ms);
    *out = new sluice_store{c10::make_intrusive<c10d::TCPStore>(host, options)};
    return SLUICE_OK;
  });
}

int sluice_store_reconnect(const sluice_store* store, sluice_store** out, char** message) {
  return guarded(message, [&] {
    *out = new sluice_store{store->store->clone()};
    return SLUICE_OK;
  });
}

void sluice_store_free(sluice_store* store) {
  delete store;
}

int sluice_store_set(sluice_store* store, const char* key, const uint8_t* value, size_t length, char** message) {
  return guarded(message, [&] {
    store->store->set(key, std::vector<uint8_t>(value, value + length));
    return SLUICE_OK;
  });
}

int sluice_store_get(
    sluice_store* store, const char* key, int64_t timeout_ms, uint8_t** value, size_t* length, char** message) {
  const int present = sluice_store_wait(store, &key, 1, timeout_ms, message);
  if (present != SLUICE_OK) {
    return present;
  }
  return guarded(message, [&] {
    const std::vector<uint8_t> bytes = store->store->get(key);
    auto* copy = static_cast<uint8_t*>(std::malloc(bytes.size() + 1));
    TORCH_CHECK(copy != nullptr, "no memory for a value of ", bytes.size(), " bytes");
    std::memcpy(copy, bytes.data(), bytes.size());
    *value = copy;
    *length = bytes.size();
    return SLUICE_OK;
  });
}

int sluice_store_wait(sluice_store* store, const char* const* keys, size_t count, int64_t timeout_ms, char** message) {
  return guarded(message, [&] {
    const std::vector<std::string> wanted(keys, keys + count);
    try {
      store->store->wait(wanted, milliseconds(std::max<int64_t>(timeout_ms, 1)));
    } catch (const c10::DistStoreError&) {
      // c10d's only way to say that the time was up.
      return SLUICE_PENDING;
    }
    return SLUICE_OK;
  });
}

int sluice_store_check(sluice_store* store, const char* key, int* present, char** message) {
  return guarded(message, [&] {
    *present = store->store->check({key}) ? 1 : 0;
    return SLUICE_OK;
  });
}

int sluice_store_add(sluice_store* store, const char* key, int64_t amount, int64_t* sum, char** message) {
  return guarded(message, [&] {
    *sum = store->store->add(key, amount);
    return SLUICE_OK;
  });
}

int sluice_store_delete(sluice_store* store, const char* key, int* deleted, char** message) {
  return guarded(message, [&] {
    *deleted = store->store->deleteKey(key) ? 1 : 0;
    return SLUICE_OK;
  });
}

int sluice_gloo_new(
    const sluice_store* store,
    const sluice_group_config* config,
    const char* host,
    const char* interface,
    sluice_group** out,
    char** message) {
  return guarded(message, [&] {
    auto keys = c10::make_intrusive<c10d::PrefixStore>(config->prefix, store->store->clone());
    keys->setTimeout(milliseconds(config->join_ms));
    auto options = c10d::ProcessGroupGloo::Options::create(milliseconds(config->join_ms));
    options->devices.push_back(
        interface != nullptr ? c10d::ProcessGroupGloo::createDeviceForInterface(interface)
                             : c10d::ProcessGroupGloo::createDeviceForHostname(host));
    auto gloo = c10::make_intrusive<TaggedGloo>(keys, config->rank, config->world_size, std::move(options));
    gloo->setTimeout(milliseconds(config->operation_ms));
    *out = new GlooGroup(std::move(gloo));
    return SLUICE_OK;
  });
}

void sluice_group_free(sluice_group* group) {
  delete group;
}

int sluice_group_abort(sluice_group* group, char** message) {
  return guarded(message, [&] {
    group->abort();
    return SLUICE_OK;
  });
}

int sluice_launch(sluice_group* group, const sluice_operation* operation, sluice_work** out, char** message) {
  return guarded(message, [&] {
    // c10d's worker threads inherit this; their copies into leaves that require gradients would be refused otherwise.
    at::NoGradGuard no_grad;
    std::lock_guard<std::mutex> lock(group->launching);
    *out = new sluice_work{launch(*group, *operation)};
    return SLUICE_OK;
  });
}

int sluice_work_wait(sluice_group* group, sluice_work* work, int64_t timeout_ms, char** message) {
  return guarded(message, [&] {
    return group->wait(*work->work, milliseconds(timeout_ms)) ? SLUICE_OK : SLUICE_PENDING;
  });
}

int sluice_work_done(sluice_work* work, int* done, char** message) {
  return guarded(message, [&] {
    *done = work->work->isCompleted() ? 1 : 0;
    return SLUICE_OK;
  });
}

void sluice_work_free(sluice_work* work) {
  delete work;
}

}  // extern "C"
