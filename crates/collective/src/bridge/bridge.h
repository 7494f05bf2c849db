// The C face of c10d that src/ffi.rs declares. For every function here:
//   - no C++ exception leaves it: failures come back as a status and a message;
//   - `message` is set exactly when the status is SLUICE_FAILED, and belongs to the caller (sluice_message_free);
//   - an object belongs to the caller once returned, and is released by its own *_free;
//   - a tensor is a borrowed at::Tensor*, as tch's Tensor::as_ptr gives it; what an operation needs after the call it
//     keeps alive itself, by reference counting.
#pragma once

#include <stddef.h>
#include <stdint.h>

extern "C" {

struct sluice_store;
struct sluice_group;
struct sluice_work;

enum {
  SLUICE_OK = 0,
  SLUICE_FAILED = 1,
  SLUICE_PENDING = 2,  // not finished, or not there, when the time was up
};

void sluice_message_free(char* message);
void sluice_bytes_free(uint8_t* bytes);

// Takes over the socket `listen_fd`, which is bound to the address `host` and listens. Here and below, `host` is numeric:
// names are not looked up.
int sluice_store_serve(int listen_fd, const char* host, int64_t timeout_ms, sluice_store** out, char** message);
int sluice_store_connect(const char* host, uint16_t port, int64_t timeout_ms, sluice_store** out, char** message);
// A second connection to the same server.
int sluice_store_reconnect(const sluice_store* store, sluice_store** out, char** message);
void sluice_store_free(sluice_store* store);

int sluice_store_set(sluice_store* store, const char* key, const uint8_t* value, size_t length, char** message);
int sluice_store_get(
    sluice_store* store, const char* key, int64_t timeout_ms, uint8_t** value, size_t* length, char** message);
int sluice_store_wait(sluice_store* store, const char* const* keys, size_t count, int64_t timeout_ms, char** message);
int sluice_store_check(sluice_store* store, const char* key, int* present, char** message);
int sluice_store_add(sluice_store* store, const char* key, int64_t amount, int64_t* sum, char** message);
int sluice_store_delete(sluice_store* store, const char* key, int* deleted, char** message);

// Connects all ranks; may block for `join_ms` and somewhat longer, and the store's connection with it. An operation
// that takes longer than `operation_ms` is given up by c10d itself.
struct sluice_group_config {
  const char* prefix;  // of the keys in the store
  int rank;
  int world_size;
  int64_t join_ms;
  int64_t operation_ms;
};
// Exactly one of `host` (a name or address of this machine) and `interface` is given.
int sluice_gloo_new(
    const sluice_store* store,
    const sluice_group_config* config,
    const char* host,
    const char* interface,
    sluice_group** out,
    char** message);
int sluice_nccl_new(
    const sluice_store* store, const sluice_group_config* config, int device, sluice_group** out, char** message);
void sluice_group_free(sluice_group* group);
// Ends every pending operation of this rank with an error and closes the connections, so that the other ranks end too.
int sluice_group_abort(sluice_group* group, char** message);
// SLUICE_FAILED when the connection to a peer is known to be closed (Gloo). Costs a small message to each peer.
int sluice_group_check(sluice_group* group, char** message);

// One operation. Only operations launched under equal tags match each other across ranks (Gloo).
enum {
  SLUICE_BROADCAST = 0,        // outputs[0]; argument: the root
  SLUICE_ALL_REDUCE = 1,       // outputs[0]; argument: a c10d::ReduceOp::RedOpType
  SLUICE_ALL_GATHER_INTO = 2,  // input to outputs[0]
  SLUICE_ALL_TO_ALL = 3,       // input to outputs[0], in equal parts
  SLUICE_REDUCE_SCATTER = 4,   // input to outputs[0]; argument: a c10d::ReduceOp::RedOpType; NCCL only
};
struct sluice_operation {
  int kind;
  int argument;
  uint32_t tag;
  void* input;
  void* const* outputs;
  size_t output_count;
};
// Starts the operation and returns.
int sluice_launch(sluice_group* group, const sluice_operation* operation, sluice_work** out, char** message);

// SLUICE_PENDING: not finished after `timeout_ms`.
int sluice_work_wait(sluice_group* group, sluice_work* work, int64_t timeout_ms, char** message);
int sluice_work_done(sluice_work* work, int* done, char** message);
void sluice_work_free(sluice_work* work);

}  // extern "C"
