// CUDA graphs: work on a device that is recorded once and then started as a whole.
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>

#include <cstddef>
#include <cstring>
#include <memory>
#include <tuple>

#include "caught.h"

// Of ATen/cuda/CUDAContextLight.h, which would want the headers of all CUDA libraries.
namespace at::cuda {
TORCH_CUDA_CPP_API cudaDeviceProp* getDeviceProperties(c10::DeviceIndex device);
}

namespace {

// Makes a stream and its device this thread's current ones. c10's own guard would need the CUDA runtime at link time.
class Current {
 public:
  explicit Current(c10::cuda::CUDAStream stream)
      : device_(c10::cuda::ExchangeDevice(stream.device_index())),
        before_(c10::cuda::getCurrentCUDAStream(stream.device_index())) {
    c10::cuda::setCurrentCUDAStream(stream);
  }
  ~Current() {
    c10::cuda::setCurrentCUDAStream(before_);
    c10::cuda::ExchangeDevice(device_);
  }
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;

 private:
  c10::DeviceIndex device_;
  c10::cuda::CUDAStream before_;
};

}  // namespace

extern "C" {

// Where graphs are recorded. They share a pool of memory, so that they must not run beside each other.
struct SluiceRecorder {
  c10::cuda::CUDAStream stream;
  at::cuda::MempoolId_t pool;
};

struct SluiceGraph {
  at::cuda::CUDAGraph graph;
};

// A recording under way on this thread, on the recorder's stream.
struct SluiceRecording {
  explicit SluiceRecording(const SluiceRecorder& recorder)
      : current(recorder.stream), graph(std::make_unique<SluiceGraph>()) {
    // Other threads may go on allocating and copying on streams of their own.
    graph->graph.capture_begin(recorder.pool, cudaStreamCaptureModeThreadLocal);
  }

  Current current;
  std::unique_ptr<SluiceGraph> graph;
};

// How many GPUs torch sees. Whoever chooses a device asks this first, and so every program keeps its link to libtorch_cuda,
// which a linker leaves out of one that takes nothing from it: torch would see no GPU then, and would not say why.
int sluice_cuda_devices() noexcept {
  at::cuda::MempoolId_t (*volatile of_torch_cuda)() = &at::cuda::graph_pool_handle;
  return of_torch_cuda == nullptr ? 0 : c10::cuda::device_count();
}

char* sluice_graph_recorder(int device, SluiceRecorder** made) {
  return sluice::caught([&] {
    auto stream = c10::cuda::getStreamFromPool(/*isHighPriority=*/false, static_cast<c10::DeviceIndex>(device));
    *made = new SluiceRecorder{stream, at::cuda::graph_pool_handle()};
  });
}

void sluice_graph_recorder_free(SluiceRecorder* recorder) { delete recorder; }

// What this thread does on the recorder's device from now on is recorded and not run.
char* sluice_graph_begin(const SluiceRecorder* recorder, SluiceRecording** begun) {
  return sluice::caught([&] { *begun = new SluiceRecording(*recorder); });
}

// Ends a recording, which is freed whatever comes of it.
char* sluice_graph_end(SluiceRecording* recording, SluiceGraph** made) {
  std::unique_ptr<SluiceRecording> owned(recording);
  return sluice::caught([&] {
    owned->graph->graph.capture_end();
    *made = owned->graph.release();
  });
}

// Runs the recorded work on the current stream of the calling thread.
char* sluice_graph_replay(SluiceGraph* graph) {
  return sluice::caught([&] { graph->graph.replay(); });
}

void sluice_graph_free(SluiceGraph* graph) { delete graph; }

// The 16 bytes that name a device and no other.
char* sluice_cuda_uuid(int device, unsigned char* uuid) {
  return sluice::caught([&] {
    const cudaDeviceProp* properties = at::cuda::getDeviceProperties(static_cast<c10::DeviceIndex>(device));
    std::memcpy(uuid, properties->uuid.bytes, 16);
  });
}

// Bytes of a device that no process has, and all of them. What torch keeps for later counts as taken.
char* sluice_cuda_memory(int device, std::size_t* free, std::size_t* total) {
  return sluice::caught([&] {
    auto* allocator = c10::cuda::CUDACachingAllocator::get();
    std::tie(*free, *total) = allocator->getMemoryInfo(static_cast<c10::DeviceIndex>(device));
  });
}
}
