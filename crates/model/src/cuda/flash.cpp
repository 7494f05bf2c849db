// FlashAttention over ragged sequences. tch exposes no operator that returns integers beside tensors, so this calls
// ATen directly; autograd goes through, as ATen has the derivative.
#include <ATen/ATen.h>

#include <optional>

#include "caught.h"

extern "C" {

// A row dimension cut into sequences: offsets is int32 [sequences + 1] on the device, longest the longest of them. used is
// null, or int32 [sequences]: how many rows of each count.
struct SluiceRagged {
  const at::Tensor* offsets;
  const at::Tensor* used;
  int64_t longest;
};

// Causal attention aligned to the end of each key sequence. left is the number of keys before its own that a query
// sees, or -1 for all. Sets *attended (owned by the caller), or returns a message (to be freed).
char* sluice_flash_attention(const at::Tensor* queries, const at::Tensor* keys, const at::Tensor* values,
                             const SluiceRagged* of_queries, const SluiceRagged* of_keys, int64_t left,
                             at::Tensor** attended) {
  return sluice::caught([&] {
    std::optional<at::Tensor> used;
    if (of_keys->used != nullptr) {
      used = *of_keys->used;
    }
    // The right end of the window is left to is_causal: set here, it would keep the kernel from taking the query heads of a
    // key head together, and from cutting long sequences of keys, where each sequence has one query.
    auto outputs = at::_flash_attention_forward(
        *queries, *keys, *values, *of_queries->offsets, *of_keys->offsets, of_queries->longest, of_keys->longest,
        /*dropout_p=*/0.0, /*is_causal=*/true, /*return_debug_mask=*/false, /*scale=*/std::nullopt,
        /*window_size_left=*/left, /*window_size_right=*/std::nullopt, /*seqused_k=*/used);
    *attended = new at::Tensor(std::get<0>(outputs));
  });
}
}
