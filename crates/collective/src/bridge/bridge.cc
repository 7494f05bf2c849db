// The store, the operations and the Gloo backend behind bridge.h.
//
// The Gloo headers (Debian's libgloo-dev) are older than the Gloo inside libtorch. That is sound because this file holds
// Gloo's own classes only through the std::shared_ptr that libtorch made: it touches no member, calls no virtual function
// and constructs nothing of Gloo's.
#include "group.hpp"

#include <arpa/nameser.h>
#include <netinet/in.h>
#include <resolv.h>

#include <algorithm>
#include <condition_variable>
#include <memory>
#include <utility>
#include <vector>

#include <ATen/core/grad_mode.h>
#include <c10/util/Logging.h>
#include <c10/util/env.h>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

using std::chrono::milliseconds;

namespace {

// Sets up, once and before the first store, what c10d reads from the environment and its flags.
void prepare_c10d() {
  static const bool once = [] {
    // c10d logs a warning with a stack trace for every time-out and closed connection. They come back as errors here,
    // so warnings are off, unless the environment says how much libtorch shall log.
    if (!c10::utils::has_env("TORCH_CPP_LOG_LEVEL")) {
      FLAGS_caffe2_log_level = std::max<int>(FLAGS_caffe2_log_level, c10::GLOG_ERROR);
    }
    // c10d's flight recorder notes each new group in a map without a lock (recordWithResetEnabled in
    // FlightRecorderDetail.hpp), which crashes when two threads launch in groups of their own. It is not needed here.
    c10::utils::set_env("TORCH_FR_BUFFER_SIZE", "0");
    return true;
  }();
  static_cast<void>(once);
}

// Names are not looked up while one of these lives. c10d asks the DNS for the name of each address it connects to, only
// to have something to log; a reply that is lost costs five seconds, and group after group connects.
class NoNames {
 public:
  NoNames() {
    if ((_res.options & RES_INIT) == 0) {
      res_ninit(&_res);
    }
    servers_ = std::exchange(_res.nscount, 0);
  }
  ~NoNames() {
    _res.nscount = servers_;
  }
  NoNames(const NoNames&) = delete;
  NoNames& operator=(const NoNames&) = delete;

 private:
  int servers_;  // of this thread: _res is thread-local
};

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

  group.tag_next(operation.tag);
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

// Where the thread that waits for an operation hears that it is over, or that the group is.
struct Signal {
  std::mutex mutex;
  std::condition_variable changed;
  bool aborted = false;
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

  void launched(c10d::Work& work) override {
    work.getFuture()->addCallback([signal = signal_](c10::ivalue::Future&) {
      std::lock_guard<std::mutex> lock(signal->mutex);
      signal->changed.notify_all();
    });
  }

  // Not c10d::Work::wait: a send that is under way when its connection is closed is sometimes not told of it, and stays
  // in Gloo's thread, with its tensors, until c10d's own limit (4 of 150 broadcasts whose receiver was killed). The
  // caller must not stay with it: it is called back here by abort(), and looks after the connections with check().
  bool wait(c10d::Work& work, milliseconds timeout) override {
    const auto future = work.getFuture();
    {
      std::unique_lock<std::mutex> lock(signal_->mutex);
      signal_->changed.wait_for(lock, timeout, [&] { return signal_->aborted || future->completed(); });
    }
    if (!future->completed()) {
      return false;
    }
    return work.wait();
  }

  // Gloo cannot be aborted from outside, but a receive that times out closes every connection of its context and fails
  // all that is pending on them. So: wait for what nobody sends. A pair that is closed already throws; then the next
  // one is tried, and when all are closed nothing is pending any more.
  void abort() override {
    {
      std::lock_guard<std::mutex> lock(signal_->mutex);
      signal_->aborted = true;
      signal_->changed.notify_all();
    }
    for (int peer = 0; peer < gloo_->getSize(); ++peer) {
      if (peer == gloo_->getRank()) {
        continue;
      }
      try {
        receive_unsent(peer)->wait(milliseconds(1));
      } catch (const std::exception&) {
      }
    }
  }

  // A new receive from a peer whose connection is closed fails at once. One that does not fail leaves a few dozen bytes
  // behind until the group is freed.
  void check() override {
    for (int peer = 0; peer < gloo_->getSize(); ++peer) {
      if (peer == gloo_->getRank()) {
        continue;
      }
      try {
        receive_unsent(peer);
      } catch (const std::exception& error) {
        TORCH_CHECK(false, "lost the connection to rank ", peer, ": ", error.what());
      }
    }
  }

 private:
  // Launches a receive of a message that nobody sends: its tag has a bit that no message has.
  c10::intrusive_ptr<c10d::Work> receive_unsent(int peer) {
    std::vector<at::Tensor> nothing{at::empty({1}, at::kByte)};
    std::lock_guard<std::mutex> lock(launching);
    return gloo_->recv(nothing, peer, 0x7fffffff);
  }

  c10::intrusive_ptr<TaggedGloo> gloo_;
  std::shared_ptr<Signal> signal_ = std::make_shared<Signal>();
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
    prepare_c10d();
    const NoNames no_names;
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
    prepare_c10d();
    const NoNames no_names;
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
    const NoNames no_names;
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
    } catch (const std::exception& error) {
      // c10d's only way to say that the time was up.
      if (dynamic_cast<const c10::DistStoreError*>(&error) == nullptr) {
        throw;
      }
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
    auto keys = c10::make_intrusive<c10d::PrefixStore>(config->prefix, store->store);
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

int sluice_group_check(sluice_group* group, char** message) {
  return guarded(message, [&] {
    group->check();
    return SLUICE_OK;
  });
}

int sluice_launch(sluice_group* group, const sluice_operation* operation, sluice_work** out, char** message) {
  return guarded(message, [&] {
    // c10d's worker threads inherit this; their copies into leaves that require gradients would be refused otherwise.
    at::NoGradGuard no_grad;
    std::lock_guard<std::mutex> lock(group->launching);
    auto work = launch(*group, *operation);
    group->launched(*work);
    *out = new sluice_work{std::move(work)};
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
