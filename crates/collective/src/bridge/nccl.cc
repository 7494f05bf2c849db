// The NCCL backend behind bridge.h; compiled with the feature `cuda`.
#include "group.hpp"

#include <atomic>
#include <thread>

#include <c10/util/env.h>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

using std::chrono::milliseconds;

namespace {

// c10d's own answers to an error or a time-out are to end the process, by its watchdog or by the monitor of its watchdog.
// Here both become errors of the operation, so these are set for every group, whatever the environment says.
void leave_errors_to_the_caller() {
  c10::utils::set_env("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0");
  c10::utils::set_env("TORCH_NCCL_BLOCKING_WAIT", "0");
  c10::utils::set_env("TORCH_NCCL_ENABLE_MONITORING", "0");
  c10::utils::set_env("TORCH_NCCL_DUMP_ON_TIMEOUT", "0");
}

class NcclGroup final : public sluice_group {
 public:
  explicit NcclGroup(c10::intrusive_ptr<c10d::ProcessGroupNCCL> nccl) : nccl_(std::move(nccl)) {}

  // Without either, c10d complains about a group that was not shut down.
  ~NcclGroup() override {
    if (!aborted_) {
      try {
        nccl_->shutdown();
      } catch (const std::exception&) {
      }
    }
  }

  c10d::Backend& backend() override {
    return *nccl_;
  }

  // c10d::Work::wait would only order the streams and leave the host without a deadline, so the host polls. Once the
  // kernel is done, wait() orders the caller's current stream after it and throws what went wrong.
  bool wait(c10d::Work& work, milliseconds timeout) override {
    const auto start = std::chrono::steady_clock::now();
    while (!work.isCompleted()) {
      const auto waited = std::chrono::steady_clock::now() - start;
      if (waited >= timeout) {
        return false;
      }
      if (waited < std::chrono::microseconds(200)) {
        std::this_thread::yield();
      } else {
        std::this_thread::sleep_for(std::chrono::microseconds(50));
      }
    }
    work.wait();
    return true;
  }

  void abort() override {
    aborted_ = true;
    nccl_->abort();
  }

 private:
  c10::intrusive_ptr<c10d::ProcessGroupNCCL> nccl_;
  std::atomic<bool> aborted_{false};
};

}  // namespace

extern "C" int sluice_nccl_new(
    const sluice_store* store, const sluice_group_config* config, int device, sluice_group** out, char** message) {
  return guarded(message, [&] {
    leave_errors_to_the_caller();
    auto keys = c10::make_intrusive<c10d::PrefixStore>(config->prefix, store->store->clone());
    keys->setTimeout(milliseconds(config->join_ms));
    auto options = c10d::ProcessGroupNCCL::Options::create();
    options->timeout = milliseconds(config->operation_ms);
    options->group_name = config->prefix;
    const at::Device bound(at::kCUDA, static_cast<c10::DeviceIndex>(device));
    auto nccl = c10::make_intrusive<c10d::ProcessGroupNCCL>(keys, config->rank, config->world_size, std::move(options));
    // The communicator is built now, under the deadline of joining, and not inside the first operation.
    nccl->setBoundDeviceId(bound);
    nccl->eagerConnectSingleDevice(bound);
    *out = new NcclGroup(std::move(nccl));
    return SLUICE_OK;
  });
}
